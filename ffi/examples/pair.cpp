// A server and a client in one program, in C++: pair
#include <iostream>
#include <lapce_ipc.hpp>

int main() {
    try {
        lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
        options.bind = "127.0.0.1:0";
        options.workers = 1;
        lapce_ipc::server server(options);
        server
            .on(0x0100, [](std::string_view payload) { return std::string(payload.rbegin(), payload.rend()); })
            .on(0x0101, [](std::string_view) -> std::string { throw std::runtime_error("not today"); });
        server.start();

        lapce_ipc::client client(server.address().c_str());
        std::cout << client.call(0x0100, "abc") << "\n";
        try {
            client.call(0x0101, "");
        } catch (const lapce_ipc::error &refused) {
            std::cout << refused.code << " " << refused.what() << "\n";
        }
    } catch (const lapce_ipc::error &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
