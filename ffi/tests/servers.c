/* A server inside this program: handlers of every kind, statistics, stopping. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

enum {
    NOW = 0x0100,
    SILENT,
    CODE_OF,
    LATER,
    LATER_STREAM,
    GIVEN_UP,
    TWICE,
    ABOUT,
    STOPS,
    ONE_WAY,
    STALE,
    HELD
};

static lapce_ipc_server *the_server;
static lapce_ipc_responder *ended_responder;
static lapce_ipc_responder *held_responder;
static atomic_int one_ways;
static atomic_int held;

static void doze(void) {
    struct timespec ms = { 0, 1000000 };
    nanosleep(&ms, NULL);
}

static void now(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    CHECK(context == &the_server && request->size == sizeof *request);
    CHECK(request->msg_type == NOW && request->msg_id != 0 && request->flags == LAPCE_IPC_EXPECTS_ANSWER);
    OK(lapce_ipc_reply_part(responder, "got ", 4));
    OK(lapce_ipc_reply(responder, request->payload, request->payload_bytes));
}

static void silent(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    (void)request;
    (void)responder;
}

static void code_of(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    int code = *(const unsigned char *)request->payload;
    (void)context;
    CODE(-EINVAL, lapce_ipc_reply_error(responder, 0, "no error"));
    CODE(-EINVAL, lapce_ipc_reply_error(responder, 15, "no error of ours"));
    CODE(-EINVAL, lapce_ipc_reply_error(responder, -5, "nor this"));
    CODE(-EINVAL, lapce_ipc_reply_error(responder, code, "\xFF\xFE"));
    OK(lapce_ipc_reply_error(responder, code, code % 2 == 0 ? NULL : "in words"));
}

static void *answer_later(void *argument) {
    doze();
    CHECK(lapce_ipc_is_gone(argument) == 0);
    OK(lapce_ipc_reply(argument, "later", 5));
    CODE(-EBADF, lapce_ipc_reply(argument, "again", 5));
    CODE(-EBADF, lapce_ipc_is_gone(argument));
    return NULL;
}

static void *stream_later(void *argument) {
    for (int i = 0; i < 1000; i++) OK(lapce_ipc_reply_part(argument, "0123456789", 10));
    OK(lapce_ipc_reply(argument, NULL, 0));
    return NULL;
}

static void *give_up(void *argument) {
    OK(lapce_ipc_reply_error(argument, LAPCE_IPC_CANCELLED, "given up"));
    return NULL;
}

static void later(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    lapce_ipc_responder *detached = responder, *again = responder;
    char peer[64];
    pthread_t thread;
    void *(*work)(void *) = request->msg_type == LATER          ? answer_later
                            : request->msg_type == LATER_STREAM ? stream_later
                                                                : give_up;
    (void)context;
    CODE(-EFAULT, lapce_ipc_detach(responder, NULL));
    OK(lapce_ipc_detach(responder, &detached));
    CHECK(detached != NULL && detached != responder);
    CODE(-EBADF, lapce_ipc_detach(responder, &again));
    CHECK(again == NULL);
    CODE(-EINVAL, lapce_ipc_detach(detached, &again));
    CODE(-EBADF, lapce_ipc_reply(responder, NULL, 0));
    CODE(-EBADF, lapce_ipc_reply_part(responder, NULL, 0));
    CODE(-EBADF, lapce_ipc_peer(detached, peer, sizeof peer));
    CHECK(pthread_create(&thread, NULL, work, detached) == 0);
    pthread_detach(thread);
}

static void twice(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    (void)request;
    OK(lapce_ipc_reply(responder, "once", 4));
    CODE(-EBADF, lapce_ipc_reply(responder, "twice", 5));
    CODE(-EBADF, lapce_ipc_reply_part(responder, "part", 4));
    CODE(-EBADF, lapce_ipc_reply_error(responder, LAPCE_IPC_CANCELLED, NULL));
    ended_responder = responder;
}

static void stale(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    lapce_ipc_responder *none = responder;
    char peer[64];
    (void)context;
    (void)request;
    CHECK(ended_responder != NULL && ended_responder != responder);
    CODE(-EBADF, lapce_ipc_reply(ended_responder, "stale", 5));
    CODE(-EFAULT, lapce_ipc_reply(NULL, "null", 4));
    CODE(-EBADF, lapce_ipc_reply((lapce_ipc_responder *)the_server, "server", 6));
    CODE(-EFAULT, lapce_ipc_peer(NULL, peer, sizeof peer));
    CODE(-EFAULT, lapce_ipc_detach(NULL, &none));
    CHECK(none == NULL);
    CODE(-EBADF, lapce_ipc_detach((lapce_ipc_responder *)the_server, &none));
    CODE(-EFAULT, lapce_ipc_reply(responder, NULL, 1));
    OK(lapce_ipc_reply(responder, "fresh", 5));
}

static void about(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    char peer[64];
    (void)context;
    CHECK(request->transport == LAPCE_IPC_TCP);
    CHECK(lapce_ipc_is_gone(responder) == 0);
    CODE(-ENOBUFS, lapce_ipc_peer(responder, peer, 9));
    CODE(-EFAULT, lapce_ipc_peer(responder, NULL, 9));
    OK(lapce_ipc_peer(responder, peer, sizeof peer));
    OK(lapce_ipc_reply(responder, peer, strlen(peer)));
}

static void stops(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    (void)request;
    FAILS(-EDEADLK, "begin_stop", lapce_ipc_server_stop(the_server));
    OK(lapce_ipc_reply(responder, "still here", 10));
}

static void one_way(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    CHECK((request->flags & LAPCE_IPC_EXPECTS_ANSWER) == 0 && request->payload_bytes == 4);
    OK(lapce_ipc_reply(responder, "to nobody", 9));
    atomic_fetch_add(&one_ways, 1);
}

static void hold(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    (void)request;
    OK(lapce_ipc_detach(responder, &held_responder));
    atomic_store(&held, 1);
}

static int is(const lapce_ipc_buffer *answer, const char *text) {
    return answer->length == strlen(text) && memcmp(answer->data, text, answer->length) == 0;
}

static lapce_ipc_server *start(char address[64]) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server;

    options.bind = "127.0.0.1:0";
    options.workers = 1;
    options.idle = IDLE;
    options.drain_ms = 200;
    OK(lapce_ipc_server_new(&options, &server));
    the_server = server;
    OK(lapce_ipc_server_handle(server, NOW, silent, NULL)); /* replaced by the next line */
    OK(lapce_ipc_server_handle(server, NOW, now, &the_server));
    OK(lapce_ipc_server_handle(server, SILENT, silent, NULL));
    OK(lapce_ipc_server_handle(server, CODE_OF, code_of, NULL));
    OK(lapce_ipc_server_handle(server, LATER, later, NULL));
    OK(lapce_ipc_server_handle(server, LATER_STREAM, later, NULL));
    OK(lapce_ipc_server_handle(server, GIVEN_UP, later, NULL));
    OK(lapce_ipc_server_handle(server, TWICE, twice, NULL));
    OK(lapce_ipc_server_handle(server, STALE, stale, NULL));
    OK(lapce_ipc_server_handle(server, ABOUT, about, NULL));
    OK(lapce_ipc_server_handle(server, STOPS, stops, NULL));
    OK(lapce_ipc_server_handle(server, ONE_WAY, one_way, NULL));
    OK(lapce_ipc_server_handle(server, HELD, hold, NULL));
    FAILS(-EINVAL, "0x0005", lapce_ipc_server_handle(server, 0x0005, now, NULL));
    CODE(-EINVAL, lapce_ipc_server_handle(server, 0, now, NULL));
    CODE(-EFAULT, lapce_ipc_server_handle(server, 0x0200, NULL, NULL));
    FAILS(-EINVAL, "not started", lapce_ipc_server_address(server, address, 64));
    CODE(-EINVAL, lapce_ipc_server_begin_stop(server));
    CODE(-EINVAL, lapce_ipc_server_wait_for_failure(server, 1));
    OK(lapce_ipc_server_start(server));
    FAILS(-EINVAL, "started", lapce_ipc_server_start(server));
    FAILS(-EINVAL, "started", lapce_ipc_server_handle(server, 0x0200, now, NULL));
    CODE(-ETIMEDOUT, lapce_ipc_server_wait_for_failure(server, 1));
    CODE(-ENOBUFS, lapce_ipc_server_address(server, address, 5));
    CODE(-EFAULT, lapce_ipc_server_address(server, NULL, 5));
    OK(lapce_ipc_server_address(server, address, 64));
    return server;
}

static void handlers(const char *address) {
    lapce_ipc_client_options impatient = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client, *other;

    impatient.timeout_ms = 1;
    OK(lapce_ipc_connect(address, NULL, &client));
    OK(lapce_ipc_call(client, NOW, "it", 2, &answer));
    CHECK(is(&answer, "got it"));
    FAILS(LAPCE_IPC_HANDLER_FAILED, "no answer", lapce_ipc_call(client, SILENT, NULL, 0, &answer));
    for (unsigned char code = 1; code <= 14; code++) {
        CODE(code, lapce_ipc_call(client, CODE_OF, &code, 1, &answer));
        CHECK(strncmp(lapce_ipc_strerror(code), lapce_ipc_last_error(), strlen(lapce_ipc_last_error())) == 0
              || strcmp(lapce_ipc_last_error(), "in words") == 0);
    }
    OK(lapce_ipc_call(client, LATER, NULL, 0, &answer));
    CHECK(is(&answer, "later"));
    OK(lapce_ipc_connect(address, &impatient, &other));
    OK(lapce_ipc_call_within(other, 20000, LATER, NULL, 0, &answer));
    CHECK(is(&answer, "later"));
    OK(lapce_ipc_close(other));
    OK(lapce_ipc_call(client, LATER_STREAM, NULL, 0, &answer));
    CHECK(answer.length == 10000);
    FAILS(LAPCE_IPC_CANCELLED, "given up", lapce_ipc_call(client, GIVEN_UP, NULL, 0, &answer));
    OK(lapce_ipc_call(client, TWICE, NULL, 0, &answer));
    CHECK(is(&answer, "once"));
    CODE(-EBADF, lapce_ipc_reply(ended_responder, "other thread", 12));
    OK(lapce_ipc_call(client, STALE, NULL, 0, &answer));
    CHECK(is(&answer, "fresh"));
    OK(lapce_ipc_call(client, ABOUT, NULL, 0, &answer));
    CHECK(answer.length > 10 && memcmp(answer.data, "127.0.0.1:", 10) == 0);
    OK(lapce_ipc_call(client, STOPS, NULL, 0, &answer));
    CHECK(is(&answer, "still here"));
    for (int i = 0; i < 3; i++) OK(lapce_ipc_send(client, ONE_WAY, "news", 4));
    for (int i = 0; i < 10000 && atomic_load(&one_ways) < 3; i++) doze();
    CHECK(atomic_load(&one_ways) == 3);
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
}

static void statistics(lapce_ipc_server *server) {
    lapce_ipc_server_stats_t stats = LAPCE_IPC_SERVER_STATS_INIT;
    struct {
        lapce_ipc_server_stats_t known;
        uint64_t later;
    } longer = { LAPCE_IPC_SERVER_STATS_INIT, 77 };
    uint64_t median = 0, longest = 0;

    OK(lapce_ipc_server_stats(server, &stats));
    CHECK(stats.size == sizeof stats && stats.tcp.requests > 20 && stats.tcp.connections_total == 2);
    CHECK(stats.tcp.bytes_in > 24 * 20 && stats.tcp.bytes_out > 10000);
    CHECK(stats.shm.requests == 0 && stats.errors >= 16 && stats.legacy_requests == 0);
    longer.known.size = sizeof longer;
    OK(lapce_ipc_server_stats(server, &longer.known));
    CHECK(longer.known.errors == stats.errors && longer.later == 0);
    stats.size = 8;
    CODE(-EINVAL, lapce_ipc_server_stats(server, &stats));
    CODE(-EFAULT, lapce_ipc_server_stats(server, NULL));
    CODE(-EFAULT, lapce_ipc_server_stats(NULL, &stats));
    OK(lapce_ipc_server_latency(server, LAPCE_IPC_TCP, 0.5, &median));
    OK(lapce_ipc_server_latency(server, LAPCE_IPC_TCP, 1.0, &longest));
    CHECK(0 < median && median <= longest);
    CODE(-ENODATA, lapce_ipc_server_latency(server, LAPCE_IPC_SHM, 0.5, &median));
    CODE(-EINVAL, lapce_ipc_server_latency(server, 3, 0.5, &median));
    CODE(-EINVAL, lapce_ipc_server_latency(server, LAPCE_IPC_TCP, 1.5, &median));
    CODE(-EFAULT, lapce_ipc_server_latency(server, LAPCE_IPC_TCP, 0.5, NULL));
}

/* What can be changed while the server runs. */
static void settings(lapce_ipc_server *server, const char *address) {
    lapce_ipc_client_options old = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_server_stats_t stats = LAPCE_IPC_SERVER_STATS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;
    uint32_t bytes = 7;

    for (uint32_t idle = IDLE, last = idle == LAPCE_IPC_SPIN ? LAPCE_IPC_SPIN : LAPCE_IPC_PARK; idle <= last; idle++) {
        OK(lapce_ipc_server_set_idle(server, idle));
        OK(lapce_ipc_connect(address, NULL, &client));
        OK(lapce_ipc_call(client, NOW, "it", 2, &answer));
        CHECK(is(&answer, "got it"));
        OK(lapce_ipc_client_peer_max_message(client, &bytes));
        CHECK(bytes == 10 * 1024 * 1024);
        CODE(-EFAULT, lapce_ipc_client_peer_max_message(client, NULL));
        OK(lapce_ipc_close(client));
    }
    OK(lapce_ipc_server_set_idle(server, IDLE));
    FAILS(-EINVAL, "waiting mode", lapce_ipc_server_set_idle(server, 3));
    CODE(-EFAULT, lapce_ipc_server_set_idle(NULL, LAPCE_IPC_SPIN));

    old.protocol_version = 1;
    old.flags = LAPCE_IPC_NO_RECONNECT;
    OK(lapce_ipc_server_set_legacy(server, 1));
    OK(lapce_ipc_connect(address, &old, &client));
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "old", 3, &answer));
    CHECK(is(&answer, "old"));
    FAILS(-ENODATA, "said", lapce_ipc_client_peer_max_message(client, &bytes));
    CHECK(bytes == 10 * 1024 * 1024);
    OK(lapce_ipc_server_set_legacy(server, 0));
    CODE(LAPCE_IPC_VERSION_MISMATCH, lapce_ipc_call(client, LAPCE_IPC_ECHO, "old", 3, &answer));
    OK(lapce_ipc_close(client));
    CODE(-EINVAL, lapce_ipc_server_set_legacy(server, 2));
    CODE(-EFAULT, lapce_ipc_server_set_legacy(NULL, 1));
    OK(lapce_ipc_server_stats(server, &stats));
    CHECK(stats.legacy_requests >= 1);
    lapce_ipc_buffer_free(&answer);
}

/* A requester that leaves, and a server that stops while answers are owed. */
static void gone(lapce_ipc_server *server, const char *address) {
    lapce_ipc_client *client;
    uint64_t id;
    int code = 0;

    OK(lapce_ipc_connect(address, NULL, &client));
    OK(lapce_ipc_submit(client, 0, HELD, NULL, 0, &id));
    OK(lapce_ipc_flush(client));
    for (int i = 0; i < 10000 && !atomic_load(&held); i++) doze();
    CHECK(atomic_load(&held) && lapce_ipc_is_gone(held_responder) == 0);
    OK(lapce_ipc_close(client));
    /* A client that has closed may still read: only what cannot be delivered tells. */
    for (int i = 0; i < 10000 && (code = lapce_ipc_reply_part(held_responder, "x", 1)) == 0; i++) doze();
    CODE(-EPIPE, code);
    CHECK(strstr(lapce_ipc_last_error(), "gone") != NULL);
    CHECK(lapce_ipc_is_gone(held_responder) == 1);
    FAILS(-EPIPE, "gone", lapce_ipc_reply(held_responder, "x", 1));
    CODE(-EBADF, lapce_ipc_reply(held_responder, "x", 1));

    atomic_store(&held, 0);
    OK(lapce_ipc_connect(address, NULL, &client));
    OK(lapce_ipc_submit(client, 0, HELD, NULL, 0, &id));
    OK(lapce_ipc_flush(client));
    for (int i = 0; i < 10000 && !atomic_load(&held); i++) doze();
    OK(lapce_ipc_server_begin_stop(server));
    OK(lapce_ipc_server_stop(server));
    CODE(-EPIPE, lapce_ipc_reply(held_responder, "too late", 8));
    CODE(-EBADF, lapce_ipc_server_stop(server));
    CODE(-EBADF, lapce_ipc_server_begin_stop(server));
    OK(lapce_ipc_server_stop(NULL));
    OK(lapce_ipc_close(client));
}

static void not_started(const char *taken) {
    static char token[65536];
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server = NULL;

    FAILS(-EINVAL, "address", lapce_ipc_server_new(&options, &server));
    FAILS(-EINVAL, "address", lapce_ipc_server_new(NULL, &server));
    CHECK(server == NULL);
    CODE(-EFAULT, lapce_ipc_server_new(&options, NULL));
    options.bind = taken;
    options.flags = LAPCE_IPC_NO_PIN | LAPCE_IPC_LEGACY;
    OK(lapce_ipc_server_new(&options, &server));
    FAILS(-EADDRINUSE, taken, lapce_ipc_server_start(server));
    FAILS(-EINVAL, "new one", lapce_ipc_server_start(server));
    OK(lapce_ipc_server_stop(server));
    options.bind = "nowhere";
    OK(lapce_ipc_server_new(&options, &server));
    FAILS(-EINVAL, "nowhere", lapce_ipc_server_start(server));
    OK(lapce_ipc_server_stop(server));
    options.workers = 1000;
    OK(lapce_ipc_server_new(&options, &server));
    FAILS(-EINVAL, "1000", lapce_ipc_server_start(server));
    OK(lapce_ipc_server_stop(server));
    options.workers = 1;
    options.bind = "127.0.0.1:0";
    /* A mistake with the token must not become a server that asks for none. */
    options.auth_token_bytes = 32;
    FAILS(-EFAULT, "token", lapce_ipc_server_new(&options, &server));
    options.auth_token = token;
    options.auth_token_bytes = 0;
    FAILS(-EINVAL, "empty", lapce_ipc_server_new(&options, &server));
    options.auth_token_bytes = sizeof token;
    OK(lapce_ipc_server_new(&options, &server));
    FAILS(-EINVAL, "65384", lapce_ipc_server_start(server));
    OK(lapce_ipc_server_stop(server));
    options.auth_token = NULL;
    options.auth_token_bytes = 0;
    options.drain_ms = UINT64_MAX;
    OK(lapce_ipc_server_new(&options, &server));
    FAILS(-EINVAL, "drain_ms", lapce_ipc_server_start(server));
    OK(lapce_ipc_server_stop(server));
    options.drain_ms = 0;
    options.flags = 64;
    CODE(-EINVAL, lapce_ipc_server_new(&options, &server));
    options.flags = 0;
    options.idle = 9;
    CODE(-EINVAL, lapce_ipc_server_new(&options, &server));
    options.idle = LAPCE_IPC_PARK;
    options.bind = "\xFF";
    FAILS(-EINVAL, "UTF-8", lapce_ipc_server_new(&options, &server));
    options.size = 95;
    CODE(-EINVAL, lapce_ipc_server_new(&options, &server));
    /* Prepared and never started. */
    options.size = sizeof options;
    options.bind = "127.0.0.1:0";
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_stop(server));
}

struct lines {
    int count;
    int level;
    char text[256];
};

static void keep(void *context, int level, const char *text) {
    struct lines *lines = context;
    lines->count++;
    lines->level = level;
    snprintf(lines->text, sizeof lines->text, "%s", text);
    FAILS(-EDEADLK, "wait for itself", lapce_ipc_set_log(LAPCE_IPC_LOG_INFO, keep, context));
}

/* What the server says of clients that it refuses. Both reasons are new: each is told once in a while only. */
static void logged(void) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    char address[64];
    struct lines lines = { 0, 0, "" };
    int code;

    options.bind = "127.0.0.1:0";
    options.workers = 1;
    options.idle = IDLE;
    options.auth_token = "secret";
    options.auth_token_bytes = 6;
    CODE(-EINVAL, lapce_ipc_set_log(0, keep, &lines));
    CODE(-EINVAL, lapce_ipc_set_log(5, keep, &lines));
    for (int turn = 0; turn < 2; turn++) {
        OK(lapce_ipc_set_log(LAPCE_IPC_LOG_WARN, turn == 0 ? keep : NULL, &lines));
        OK(lapce_ipc_server_new(&options, &server));
        OK(lapce_ipc_server_start(server));
        OK(lapce_ipc_server_address(server, address, sizeof address));
        client_options.protocol_version = turn == 0 ? 2 : 1;
        code = lapce_ipc_connect(address, &client_options, &client);
        /* A server is not asked for its version when an old client connects. */
        if (turn == 1) {
            CODE(0, code);
            code = lapce_ipc_ping(client, NULL);
            OK(lapce_ipc_close(client));
        }
        CHECK(code > 0);
        OK(lapce_ipc_server_stop(server));
        CHECK(lines.count == 1 && lines.level == LAPCE_IPC_LOG_WARN);
        CHECK(strstr(lines.text, "127.0.0.1") != NULL && strstr(lines.text, "UNAUTHORIZED") != NULL);
    }
}

static void peer_of(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    char peer[8];
    (void)context;
    CHECK(request->transport == LAPCE_IPC_SHM);
    OK(lapce_ipc_peer(responder, peer, sizeof peer));
    OK(lapce_ipc_reply(responder, peer, strlen(peer)));
}

static void over_shared_memory(void) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_client_stats_t stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_server_stats_t server_stats = LAPCE_IPC_SERVER_STATS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_server *server, *second;
    lapce_ipc_client *client, *late;
    char address[64], instance[32];
    lapce_ipc_answer polled = LAPCE_IPC_ANSWER_INIT;
    struct pollfd watched = { .events = POLLIN };
    uint64_t ns;
    int fd, code;

    snprintf(instance, sizeof instance, "ffi_%ld", (long)getpid());
    options.shm = instance;
    options.workers = 1;
    options.idle = IDLE;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_handle(server, ABOUT, peer_of, NULL));
    OK(lapce_ipc_server_start(server));
    FAILS(-ENOTCONN, "TCP", lapce_ipc_server_address(server, address, sizeof address));
    OK(lapce_ipc_server_new(&options, &second));
    FAILS(-EEXIST, instance, lapce_ipc_server_start(second));
    OK(lapce_ipc_server_stop(second));

    snprintf(address, sizeof address, "shm:%s", instance);
    OK(lapce_ipc_connect(address, NULL, &client));
    OK(lapce_ipc_call(client, ABOUT, NULL, 0, &answer));
    CHECK(is(&answer, "shm"));
    OK(lapce_ipc_client_stats(client, &stats));
    CHECK(stats.transport == LAPCE_IPC_SHM && stats.connected == 1);
    OK(lapce_ipc_descriptor(client, &fd));
    while ((code = lapce_ipc_poll(client, &polled)) == 0) {
    }
    CODE(-EAGAIN, code);
    OK(lapce_ipc_server_stats(server, &server_stats));
    CHECK(server_stats.shm.requests >= 1 && server_stats.shm.connections == 1);
    CHECK(server_stats.tcp.requests == 0);
    /* It is counted after the answer has left. */
    for (int i = 0; i < 10000 && lapce_ipc_server_latency(server, LAPCE_IPC_SHM, 1.0, &ns) != 0; i++) doze();
    OK(lapce_ipc_server_latency(server, LAPCE_IPC_SHM, 1.0, &ns));
    lapce_ipc_buffer_free(&answer);
    /* The server's end is seen on the descriptor. */
    while ((code = lapce_ipc_poll(client, &polled)) == 0) {
    }
    CODE(-EAGAIN, code);
    /* From here on nobody new gets in. */
    OK(lapce_ipc_server_begin_stop(server));
    CODE(-ENOENT, lapce_ipc_connect(address, NULL, &late));
    OK(lapce_ipc_server_stop(server));
    watched.fd = fd;
    CHECK(poll(&watched, 1, 10000) == 1);
    OK(lapce_ipc_close(client));
}

int main(void) {
    char address[64];
    lapce_ipc_server *server = start(address);

    handlers(address);
    statistics(server);
    settings(server, address);
    not_started(address);
    logged();
    gone(server, address);
    /* valgrind does not know pidfd_open, by which each side watches the other. */
    if (getenv("LAPCE_IPC_TEST_SPIN") == NULL) over_shared_memory();
    return 0;
}
