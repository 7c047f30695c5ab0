/*
 * What a client can do, with a server of another process: calls ADDRESS. The server serves the types of
 * examples/server.c, or only ECHO if ECHO-ONLY follows the address.
 */
#include "check.h"

#include <poll.h>

#define UPPER 0x0100
#define LATER 0x0101
#define SPELL 0x0102

/* As the address says, and no other way. */
static lapce_ipc_client *connected(const char *address, uint32_t flags) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client *client;

    options.flags = flags | LAPCE_IPC_NO_SHM_UPGRADE;
    options.timeout_ms = 20000;
    OK(lapce_ipc_connect(address, &options, &client));
    return client;
}

static void calls(const char *address) {
    lapce_ipc_client_stats_t stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;
    size_t large_bytes = 3 * 1024 * 1024;
    char *large = malloc(large_bytes);
    uint8_t *memory;
    uint64_t ns = 0;

    CHECK(large != NULL);
    for (size_t i = 0; i < large_bytes; i++) large[i] = (char)(i * 7);
    client = connected(address, LAPCE_IPC_RECORD_ROUND_TRIPS);
    OK(lapce_ipc_ping(client, &ns));
    CHECK(ns > 0);
    OK(lapce_ipc_ping(client, NULL));
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, NULL, 0, &answer));
    CHECK(answer.length == 0);
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "hello", 5, &answer));
    CHECK(answer.length == 5 && memcmp(answer.data, "hello", 5) == 0);
    memory = answer.data;
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "world", 5, &answer));
    CHECK(answer.data == memory && memcmp(answer.data, "world", 5) == 0);
    /* The answer may be sent on in its own buffer. */
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, answer.data + 1, 3, &answer));
    CHECK(answer.length == 3 && memcmp(answer.data, "orl", 3) == 0);
    OK(lapce_ipc_call_idempotent(client, LAPCE_IPC_HEARTBEAT, answer.data, 3, &answer));
    CHECK(answer.length == 3 && memcmp(answer.data, "orl", 3) == 0);
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, large, large_bytes, &answer));
    CHECK(answer.length == large_bytes && memcmp(answer.data, large, large_bytes) == 0);
    OK(lapce_ipc_send(client, LAPCE_IPC_ECHO, "nobody hears", 12));

    OK(lapce_ipc_client_stats(client, &stats));
    CHECK(stats.size == sizeof stats && stats.in_flight == 0 && stats.connected == 1);
    CHECK(stats.received == 8 && stats.sent == 9 && stats.reconnects == 0);
    CHECK(stats.transport == (strncmp(address, "shm:", 4) == 0 ? LAPCE_IPC_SHM : LAPCE_IPC_TCP));
    OK(lapce_ipc_client_latency(client, 1.0, &ns));
    CHECK(ns > 0);
    OK(lapce_ipc_close(client));
    CODE(-EBADF, lapce_ipc_ping(client, NULL));
    CODE(-EBADF, lapce_ipc_close(client));
    OK(lapce_ipc_close(NULL));
    lapce_ipc_buffer_free(&answer);
    CHECK(answer.data == NULL && answer.length == 0);
    lapce_ipc_buffer_free(&answer);
    lapce_ipc_buffer_free(NULL);
    free(large);
}

struct seen {
    size_t answers;
    uint64_t id_sum;
    lapce_ipc_client *client;
};

static void sink(void *context, const lapce_ipc_answer_view *answer) {
    struct seen *seen = context;
    CHECK(answer->size == sizeof *answer && answer->status == 0 && answer->last == 1);
    CHECK(answer->payload_bytes == 4 && memcmp(answer->payload, "pipe", 4) == 0);
    CHECK(answer->msg_type == LAPCE_IPC_ECHO);
    seen->answers++;
    seen->id_sum += answer->id;
    CODE(-EBUSY, lapce_ipc_ping(seen->client, NULL));
    CODE(-EBUSY, lapce_ipc_close(seen->client));
}

static void submitted(const char *address) {
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_buffer buffer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;
    struct seen seen = { 0, 0, NULL };
    uint64_t ids[100], id_sum = 0, last;
    size_t count = 0;
    int code;

    client = connected(address, 0);
    CODE(-EAGAIN, lapce_ipc_poll(client, &answer));
    for (int i = 0; i < 100; i++) OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, &i, sizeof i, &ids[i]));
    OK(lapce_ipc_flush(client));
    for (int i = 99; i >= 50; i--) {
        OK(lapce_ipc_wait(client, ids[i], &buffer));
        CHECK(buffer.length == sizeof i && memcmp(buffer.data, &i, sizeof i) == 0);
    }
    FAILS(-EINVAL, "in flight", lapce_ipc_wait(client, ids[99], &buffer));
    for (int i = 0; i < 25; i++) {
        OK(lapce_ipc_wait_any(client, &answer));
        CHECK(answer.id == ids[i] && answer.status == 0 && answer.last == 1);
        CHECK(memcmp(answer.payload.data, &i, sizeof i) == 0);
    }
    for (int i = 25; i < 50;) {
        code = lapce_ipc_poll(client, &answer);
        if (code == -EAGAIN) continue;
        OK(code);
        CHECK(answer.id == ids[i++]);
    }
    FAILS(-EINVAL, "in flight", lapce_ipc_wait_any(client, &answer));

    OK(lapce_ipc_submit(client, LAPCE_IPC_PRIORITY, LAPCE_IPC_ECHO, "first", 5, &last));
    OK(lapce_ipc_cancel(client, last));
    OK(lapce_ipc_cancel(client, last));
    OK(lapce_ipc_cancel(client, 123456));

    OK(lapce_ipc_submit(client, LAPCE_IPC_MORE, LAPCE_IPC_ECHO, "in ", 3, &last));
    OK(lapce_ipc_submit_part(client, LAPCE_IPC_MORE, last, LAPCE_IPC_ECHO, "three ", 6));
    OK(lapce_ipc_submit_part(client, 0, last, LAPCE_IPC_ECHO, "parts", 5));
    OK(lapce_ipc_wait(client, last, &buffer));
    CHECK(buffer.length == 14 && memcmp(buffer.data, "in three parts", 14) == 0);
    CODE(-EINVAL, lapce_ipc_submit_part(client, 0, last, LAPCE_IPC_ECHO, "late", 4));
    CODE(-EINVAL, lapce_ipc_submit_part(client, 8, last, LAPCE_IPC_ECHO, "late", 4));
    CODE(-EINVAL, lapce_ipc_submit(client, 8, LAPCE_IPC_ECHO, "late", 4, &last));

    seen.client = client;
    for (int i = 0; i < 50; i++) {
        OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, "pipe", 4, &last));
        id_sum += last;
    }
    while (seen.answers < 50) {
        OK(lapce_ipc_drain(client, LAPCE_IPC_WAIT, sink, &seen, &count));
        CHECK(count > 0);
    }
    CHECK(seen.id_sum == id_sum);
    OK(lapce_ipc_drain(client, 0, sink, &seen, &count));
    CHECK(count == 0);
    OK(lapce_ipc_drain(client, 0, sink, &seen, NULL));
    CODE(-EINVAL, lapce_ipc_drain(client, LAPCE_IPC_WAIT, sink, &seen, &count));
    CODE(-EINVAL, lapce_ipc_drain(client, 2, sink, &seen, &count));
    CODE(-EFAULT, lapce_ipc_drain(client, 0, NULL, &seen, &count));
    lapce_ipc_buffer_free(&answer.payload);
    lapce_ipc_buffer_free(&buffer);
    OK(lapce_ipc_close(client));
}

static int is_readable(int descriptor, int wait_ms) {
    struct pollfd polled = { descriptor, POLLIN, 0 };
    return poll(&polled, 1, wait_ms) == 1;
}

static void descriptor(const char *address) {
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_client *client;
    uint64_t kept;
    int fd = -1, again = -1, code;
    /* A ring's watcher may tell once too often. */
    int exact = strncmp(address, "shm:", 4) != 0;

    client = connected(address, 0);
    OK(lapce_ipc_descriptor(client, &fd));
    OK(lapce_ipc_descriptor(client, &again));
    CHECK(fd >= 0 && fd == again);
    CHECK(!exact || !is_readable(fd, 0));
    for (int round = 0; round < 3; round++) {
        OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, "x", 1, &kept));
        CHECK(is_readable(fd, 0)); /* there is something to send: polling sends it */
        OK(lapce_ipc_flush(client));
        CHECK(is_readable(fd, 10000));
        while ((code = lapce_ipc_poll(client, &answer)) == -EAGAIN) {
        }
        OK(code);
        CHECK(answer.id == kept);
        CODE(-EAGAIN, lapce_ipc_poll(client, &answer));
        CHECK(!exact || !is_readable(fd, 0));
    }
    /* Nothing but the descriptor tells: a lost wake-up would be seen here. */
    for (uint32_t round = 0; round < 2000; round++) {
        OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, &round, sizeof round, &kept));
        while ((code = lapce_ipc_poll(client, &answer)) == -EAGAIN) {
            CHECK(is_readable(fd, 10000));
        }
        OK(code);
        CHECK(answer.id == kept && memcmp(answer.payload.data, &round, sizeof round) == 0);
    }
    /* An answer that came while another was waited for. */
    OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, "kept", 4, &kept));
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "y", 1, &answer.payload));
    CHECK(is_readable(fd, 0));
    OK(lapce_ipc_poll(client, &answer));
    CHECK(answer.id == kept);
    CODE(-EAGAIN, lapce_ipc_poll(client, &answer));
    CHECK(!exact || !is_readable(fd, 0));
    lapce_ipc_buffer_free(&answer.payload);
    OK(lapce_ipc_close(client));
}

static void example_types(const char *address) {
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_buffer buffer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;
    uint64_t id, other;

    client = connected(address, 0);
    OK(lapce_ipc_call(client, UPPER, "shout", 5, &buffer));
    CHECK(buffer.length == 5 && memcmp(buffer.data, "SHOUT", 5) == 0);
    OK(lapce_ipc_call(client, LATER, NULL, 0, &buffer));
    CHECK(buffer.length == 4 && memcmp(buffer.data, "done", 4) == 0);
    OK(lapce_ipc_call(client, SPELL, "abc", 3, &buffer));
    CHECK(buffer.length == 3 && memcmp(buffer.data, "abc", 3) == 0);
    OK(lapce_ipc_submit(client, 0, SPELL, "abc", 3, &id));
    OK(lapce_ipc_submit(client, 0, SPELL, "xyz", 3, &other));
    for (int i = 0; i < 4; i++) {
        OK(lapce_ipc_wait_part(client, id, &answer));
        CHECK(answer.id == id && answer.status == 0 && answer.last == (i == 3));
        CHECK(answer.payload.length == (i < 3) && (i == 3 || answer.payload.data[0] == "abc"[i]));
    }
    FAILS(-EINVAL, "in flight", lapce_ipc_wait_part(client, id, &answer));
    OK(lapce_ipc_wait(client, other, &buffer));
    CHECK(buffer.length == 3 && memcmp(buffer.data, "xyz", 3) == 0);

    FAILS(LAPCE_IPC_UNKNOWN_TYPE, "nobody serves", lapce_ipc_call(client, 0x0199, NULL, 0, &buffer));
    CHECK(buffer.length == 0);
    OK(lapce_ipc_submit(client, 0, 0x0199, NULL, 0, &id));
    OK(lapce_ipc_wait_any(client, &answer));
    CHECK(answer.id == id && answer.status == LAPCE_IPC_UNKNOWN_TYPE && answer.last == 1);
    CHECK(answer.payload.length > 0 && strlen((char *)answer.payload.data) == answer.payload.length);
    lapce_ipc_buffer_free(&answer.payload);
    lapce_ipc_buffer_free(&buffer);
    OK(lapce_ipc_close(client));
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    calls(argv[1]);
    submitted(argv[1]);
    descriptor(argv[1]);
    if (argc == 2) example_types(argv[1]);
    return 0;
}
