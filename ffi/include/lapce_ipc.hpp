// lapce_ipc.hpp - lapce_ipc.h for C++17: handles that close themselves, errors that are thrown.
#pragma once

#include "lapce_ipc.h"

#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace lapce_ipc {

struct error : std::runtime_error {
    int code; // as in lapce_ipc.h
    error(int code_, const char *text) : std::runtime_error(text), code(code_) {}
};

inline void check(int code) {
    if (code != 0) throw error(code, lapce_ipc_last_error());
}

class pool;

class client {
    lapce_ipc_client *handle_ = nullptr;
    lapce_ipc_buffer answer_ = LAPCE_IPC_BUFFER_INIT;
    int (*end_)(lapce_ipc_client *) = lapce_ipc_close;

    friend class pool;
    explicit client(const pool &pool);

public:
    explicit client(const char *address, const lapce_ipc_client_options *options = nullptr) {
        check(lapce_ipc_connect(address, options, &handle_));
    }
    client(client &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), answer_(std::exchange(other.answer_, {})), end_(other.end_) {}
    client &operator=(client other) noexcept {
        std::swap(handle_, other.handle_);
        std::swap(answer_, other.answer_);
        std::swap(end_, other.end_);
        return *this;
    }
    ~client() {
        lapce_ipc_buffer_free(&answer_);
        end_(handle_);
    }
    lapce_ipc_client *get() const noexcept { return handle_; } // for the functions of lapce_ipc.h

    // The result lives until the next call.
    std::string_view call(uint16_t type, std::string_view payload) {
        check(lapce_ipc_call(handle_, type, payload.data(), payload.size(), &answer_));
        return {reinterpret_cast<const char *>(answer_.data), answer_.length};
    }
    // The same, with a payload that write(char *) writes to the memory that it is sent from: at most `most` bytes.
    // It returns how many, and must not use the client.
    template <class Write> std::string_view call_in_place(uint16_t type, size_t most, Write &&write) {
        void *memory;
        uint64_t id;
        check(lapce_ipc_reserve(handle_, type, most, &memory, nullptr));
        try {
            check(lapce_ipc_commit(handle_, write(static_cast<char *>(memory)), &id));
        } catch (...) {
            lapce_ipc_abort(handle_); // refused if the commit ended it
            throw;
        }
        check(lapce_ipc_wait(handle_, id, &answer_));
        return {reinterpret_cast<const char *>(answer_.data), answer_.length};
    }
    void send(uint16_t type, std::string_view payload) {
        check(lapce_ipc_send(handle_, type, payload.data(), payload.size()));
    }
};

// For any number of threads at a time.
class pool {
    lapce_ipc_pool *handle_ = nullptr;

public:
    explicit pool(const char *address, const lapce_ipc_pool_options *options = nullptr) {
        check(lapce_ipc_pool_open(address, options, &handle_));
    }
    pool(const pool &) = delete;
    pool &operator=(const pool &) = delete;
    ~pool() { lapce_ipc_pool_close(handle_); }
    lapce_ipc_pool *get() const noexcept { return handle_; }

    std::string call(uint16_t type, std::string_view payload) const {
        struct buffer : lapce_ipc_buffer {
            ~buffer() { lapce_ipc_buffer_free(this); }
        } answer{LAPCE_IPC_BUFFER_INIT};
        check(lapce_ipc_pool_call(handle_, type, payload.data(), payload.size(), &answer));
        return {reinterpret_cast<const char *>(answer.data), answer.length};
    }
    // A connection taken out of the pool, which goes back when the client ends.
    client take() const { return client(*this); }
};

inline client::client(const pool &pool) : end_(lapce_ipc_pool_put) {
    check(lapce_ipc_pool_get(pool.get(), &handle_));
}

class server {
public:
    // Answers with what it returns; what it throws becomes HANDLER_FAILED with its text. Runs on the
    // server's threads: it must not block.
    using handler = std::function<std::string(std::string_view payload)>;

    explicit server(const lapce_ipc_server_options &options) { check(lapce_ipc_server_new(&options, &handle_)); }
    server(const server &) = delete;
    server &operator=(const server &) = delete;
    ~server() { lapce_ipc_server_stop(handle_); }
    lapce_ipc_server *get() const noexcept { return handle_; }

    server &on(uint16_t type, handler function) {
        handler &kept = handlers_[type];
        check(lapce_ipc_server_handle(handle_, type, run, &kept)); // refused once it runs
        kept = std::move(function);
        return *this;
    }
    void start() { check(lapce_ipc_server_start(handle_)); }
    std::string address() const {
        char text[64];
        check(lapce_ipc_server_address(handle_, text, sizeof text));
        return text;
    }

private:
    lapce_ipc_server *handle_ = nullptr;
    std::map<uint16_t, handler> handlers_; // outlives the server's threads: the destructor stops them first

    static void run(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
        try {
            auto payload = std::string_view(static_cast<const char *>(request->payload), request->payload_bytes);
            std::string answer = (*static_cast<handler *>(context))(payload);
            lapce_ipc_reply(responder, answer.data(), answer.size());
        } catch (const std::exception &problem) {
            lapce_ipc_reply_error(responder, LAPCE_IPC_HANDLER_FAILED, problem.what());
        } catch (...) {
            lapce_ipc_reply_error(responder, LAPCE_IPC_HANDLER_FAILED, "the handler failed");
        }
    }
};

} // namespace lapce_ipc
