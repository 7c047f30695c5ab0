// The C++ header: ownership, moving, exceptions.
#include "check.h"
#include <lapce_ipc.hpp>

int main() {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    options.bind = "127.0.0.1:0";
    options.workers = 1;
    options.idle = IDLE;
    lapce_ipc::server server(options);
    server.on(0x0100, [](std::string_view payload) { return std::string(payload) + "!"; })
        .on(0x0101, [](std::string_view) -> std::string { throw std::runtime_error("not today"); })
        .on(0x0102, [](std::string_view) -> std::string { throw 5; });
    server.start();

    lapce_ipc::client first(server.address().c_str());
    CHECK(first.call(0x0100, "a") == "a!");
    lapce_ipc::client second(std::move(first));
    CHECK(second.call(0x0100, "b") == "b!");
    first = std::move(second);
    CHECK(first.call(0x0100, "c") == "c!");
    first.send(0x0100, "d");
    auto write = [](char *memory) { return std::string_view("in place").copy(memory, 100); };
    CHECK(first.call_in_place(0x0100, 100, write) == "in place!");
    try {
        first.call_in_place(0x0100, 100, [](char *) -> size_t { throw 5; });
        CHECK(!"the function threw");
    } catch (int thrown) {
        CHECK(thrown == 5);
    }
    try {
        first.call_in_place(0x0100, 100, [](char *) { return size_t(101); });
        CHECK(!"more than was reserved");
    } catch (const lapce_ipc::error &error) {
        CHECK(error.code == -EINVAL);
    }
    CHECK(first.call(0x0100, "e") == "e!");
    try {
        second.call(0x0100, "");
        CHECK(!"a client that was moved from must not work");
    } catch (const lapce_ipc::error &error) {
        CHECK(error.code == -EFAULT);
    }
    for (uint16_t type : {0x0101, 0x0102}) {
        try {
            first.call(type, "");
            CHECK(!"the handler threw");
        } catch (const lapce_ipc::error &error) {
            CHECK(error.code == LAPCE_IPC_HANDLER_FAILED);
            CHECK(std::string(error.what()) == (type == 0x0101 ? "not today" : "the handler failed"));
        }
    }
    {
        lapce_ipc_pool_options one = LAPCE_IPC_POOL_OPTIONS_INIT;
        lapce_ipc_pool_stats_t stats = LAPCE_IPC_POOL_STATS_INIT;
        one.max_connections = 1;
        lapce_ipc::pool pool(server.address().c_str(), &one);
        CHECK(pool.call(0x0100, "pooled") == "pooled!");
        {
            lapce_ipc::client taken = pool.take();
            CHECK(taken.call(0x0100, "taken") == "taken!");
            first = std::move(taken);
        }
        CHECK(first.call(0x0100, "moved") == "moved!");
        first = lapce_ipc::client(server.address().c_str());
        CHECK(pool.call(0x0100, "back") == "back!"); // the one connection is there again
        lapce_ipc::check(lapce_ipc_pool_stats(pool.get(), &stats));
        CHECK(stats.created == 1 && stats.acquired == 3);
        try {
            pool.call(0x0101, "");
            CHECK(!"the handler threw");
        } catch (const lapce_ipc::error &error) {
            CHECK(error.code == LAPCE_IPC_HANDLER_FAILED);
        }
    }
    try {
        server.on(0x0103, [](std::string_view) { return std::string(); });
        CHECK(!"the server is started");
    } catch (const lapce_ipc::error &error) {
        CHECK(error.code == -EINVAL);
    }
}
