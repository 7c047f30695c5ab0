/*
 * Payloads written in place: reserve ADDRESS, with a server of another process that serves ECHO; then with
 * a server of this program's own that goes away in between.
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

#define ROUNDS 20000
#define IN_FLIGHT 50

static int is_shm(const char *address) {
    return strncmp(address, "shm:", 4) == 0;
}

static lapce_ipc_client *connected(const char *address) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client *client;

    options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    options.timeout_ms = 20000;
    OK(lapce_ipc_connect(address, &options, &client));
    return client;
}

static void fill(unsigned char *to, size_t length, size_t seed) {
    for (size_t i = 0; i < length; i++) to[i] = (unsigned char)(i * 7 + seed * 13 + i / 251);
}

static int holds(const lapce_ipc_buffer *buffer, size_t length, size_t seed) {
    if (buffer->length != length) return 0;
    for (size_t i = 0; i < length; i++)
        if (buffer->data[i] != (unsigned char)(i * 7 + seed * 13 + i / 251)) return 0;
    return 1;
}

/* Mostly small, some as long as a record, some longer, some empty. */
static size_t length_of(size_t round) {
    if (round % 61 == 0) return 100000;
    if (round % 53 == 0) return 32736;
    if (round % 47 == 0) return 0;
    return round * 37 % 1500;
}

static void among_others(const char *address) {
    lapce_ipc_client *client = connected(address);
    lapce_ipc_client_stats_t stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    unsigned char *own = malloc(100000);
    uint64_t ids[IN_FLIGHT];
    size_t rounds[IN_FLIGHT], first = 0, count = 0, sent = 0, capacity;

    CHECK(own != NULL);
    for (size_t round = 0; round < ROUNDS || count > 0; round++) {
        if (round < ROUNDS) {
            size_t length = length_of(round), last = (first + count) % IN_FLIGHT;
            void *data = NULL;

            if (round % 4 == 0) {
                fill(own, length, round);
                OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, own, length, &ids[last]));
            } else {
                /* Reserved is sometimes more than is used. */
                size_t more = round % 4 == 1 ? 700 : 0;
                OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, length + more, &data, &capacity));
                CHECK(data != NULL && (uintptr_t)data % 32 == 0 && capacity >= length + more);
                fill(data, capacity, round + (round % 4 == 3));
                if (round % 4 == 3) {
                    OK(lapce_ipc_abort(client));
                    continue;
                }
                OK(lapce_ipc_commit(client, length, &ids[last]));
            }
            rounds[last] = round;
            count++;
            sent++;
        }
        /* All at once now and then, so that the ring fills up and empties. */
        while (count == IN_FLIGHT || (count > 0 && (round >= ROUNDS || round % 301 == 0))) {
            OK(lapce_ipc_wait(client, ids[first], &answer));
            CHECK(holds(&answer, length_of(rounds[first]), rounds[first]));
            first = (first + 1) % IN_FLIGHT;
            count--;
        }
    }
    OK(lapce_ipc_client_stats(client, &stats));
    CHECK(stats.sent == sent && stats.received == sent && stats.in_flight == 0 && stats.reconnects == 0);
    CHECK(stats.transport == (is_shm(address) ? LAPCE_IPC_SHM : LAPCE_IPC_TCP));
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
    free(own);
}

/* Whether an address lies in memory that is shared with the server. */
static int is_shared(const void *address) {
    FILE *maps = fopen("/proc/self/maps", "r");
    uintptr_t begin, end;
    char line[512];
    int shared = 0;

    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL)
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR, &begin, &end) == 2 && begin <= (uintptr_t)address &&
            (uintptr_t)address < end)
            shared = strstr(line, "/dev/shm/lapce_ipc_v2_") != NULL;
    fclose(maps);
    return shared;
}

static void sink(void *context, const lapce_ipc_answer_view *answer) {
    (void)context;
    (void)answer;
}

#define BUSY(call) FAILS(-EBUSY, "a reservation is open", call)

static void mistakes(const char *address) {
    lapce_ipc_client *client = connected(address);
    lapce_ipc_client_stats_t stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_buffer buffer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    void *data = &buffer, *other = NULL;
    uint64_t id = 5, earlier;
    size_t capacity = 77;
    int fd;

    FAILS(-EINVAL, "nothing is reserved", lapce_ipc_commit(client, 0, &id));
    FAILS(-EINVAL, "nothing is reserved", lapce_ipc_abort(client));
    CODE(-EMSGSIZE, lapce_ipc_reserve(client, LAPCE_IPC_ECHO, (size_t)-1, &data, &capacity));
    CODE(-EFAULT, lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 10, NULL, &capacity));
    CODE(-EFAULT, lapce_ipc_reserve(NULL, LAPCE_IPC_ECHO, 10, &data, &capacity));
    CHECK(data == &buffer && capacity == 77 && id == 5);

    OK(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, "earlier", 7, &earlier));
    OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 100, &data, NULL));
    CHECK(is_shared(data) == is_shm(address));
    BUSY(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 100, &other, &capacity));
    BUSY(lapce_ipc_call(client, LAPCE_IPC_ECHO, "x", 1, &buffer));
    BUSY(lapce_ipc_call_idempotent(client, LAPCE_IPC_ECHO, "x", 1, &buffer));
    BUSY(lapce_ipc_send(client, LAPCE_IPC_ECHO, "x", 1));
    BUSY(lapce_ipc_ping(client, NULL));
    BUSY(lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, "x", 1, &id));
    BUSY(lapce_ipc_submit_part(client, 0, earlier, LAPCE_IPC_ECHO, "x", 1));
    BUSY(lapce_ipc_flush(client));
    BUSY(lapce_ipc_cancel(client, earlier));
    BUSY(lapce_ipc_poll(client, &answer));
    BUSY(lapce_ipc_wait_any(client, &answer));
    BUSY(lapce_ipc_wait(client, earlier, &buffer));
    BUSY(lapce_ipc_wait_part(client, earlier, &answer));
    BUSY(lapce_ipc_drain(client, 0, sink, NULL, NULL));
    BUSY(lapce_ipc_descriptor(client, &fd));
    BUSY(lapce_ipc_client_stats(client, &stats));
    BUSY(lapce_ipc_client_latency(client, 0.5, &id));
    CHECK(other == NULL && capacity == 77 && id == 5);

    /* What is wrong with a commit leaves the reservation as it is. */
    memcpy(data, "written in place", 16);
    FAILS(-EINVAL, "longer than what was reserved", lapce_ipc_commit(client, 101, &id));
    CODE(-EFAULT, lapce_ipc_commit(client, 16, NULL));
    CODE(-EFAULT, lapce_ipc_commit(NULL, 16, &id));
    OK(lapce_ipc_commit(client, 16, &id));
    CODE(-EINVAL, lapce_ipc_commit(client, 16, &id));
    OK(lapce_ipc_wait_any(client, &answer));
    CHECK(answer.id == earlier && answer.payload.length == 7);
    OK(lapce_ipc_wait_any(client, &answer));
    CHECK(answer.id == id && answer.payload.length == 16);
    CHECK(memcmp(answer.payload.data, "written in place", 16) == 0);

    /* The longest that is made in place, and one byte more. */
    for (size_t length = 32736; length <= 32737; length++) {
        OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, length, &data, &capacity));
        CHECK(is_shared(data) == (is_shm(address) && length == 32736) && capacity >= length);
        fill(data, length, 3);
        OK(lapce_ipc_commit(client, length, &id));
        OK(lapce_ipc_wait(client, id, &buffer));
        CHECK(holds(&buffer, length, 3));
    }

    /* Given up, and nothing of it comes. */
    OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 100, &data, NULL));
    memset(data, 1, 100);
    OK(lapce_ipc_abort(client));
    CODE(-EINVAL, lapce_ipc_abort(client));
    CODE(-EINVAL, lapce_ipc_wait_any(client, &answer));
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "x", 1, &buffer));
    CHECK(buffer.length == 1 && buffer.data[0] == 'x');

    lapce_ipc_buffer_free(&buffer);
    lapce_ipc_buffer_free(&answer.payload);
    OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 100, &data, NULL));
    OK(lapce_ipc_close(client));
    CODE(-EBADF, lapce_ipc_abort(client));
}

/* Who waits for answers by the descriptor gets those too. */
static void with_descriptor(const char *address) {
    lapce_ipc_client *client = connected(address);
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    struct pollfd polled = { -1, POLLIN, 0 };
    uint64_t id;
    void *data;
    int code;

    OK(lapce_ipc_descriptor(client, &polled.fd));
    for (size_t round = 0; round < 200; round++) {
        OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 500, &data, NULL));
        fill(data, 500, round);
        OK(lapce_ipc_commit(client, 300, &id));
        OK(lapce_ipc_flush(client));
        while ((code = lapce_ipc_poll(client, &answer)) == -EAGAIN) CHECK(poll(&polled, 1, 20000) == 1);
        OK(code);
        CHECK(answer.id == id && holds(&answer.payload, 300, round));
    }
    lapce_ipc_buffer_free(&answer.payload);
    OK(lapce_ipc_close(client));
}

static lapce_ipc_server *serve(const char *bind, const char *shm) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server;

    options.bind = bind;
    options.shm = shm;
    options.workers = 1;
    options.flags = LAPCE_IPC_NO_PIN;
    options.idle = IDLE;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    return server;
}

/* The server goes while the payload is being written; another one comes in its place. */
static void server_goes(int shm, int comes_back) {
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    struct timespec rest = { 0, 10000000 };
    lapce_ipc_client *client;
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    char name[32], address[64];
    lapce_ipc_server *server;
    void *data;
    uint64_t id;

    snprintf(name, sizeof name, "reserve_c_%d", (int)getpid());
    server = serve(shm ? NULL : "127.0.0.1:0", shm ? name : NULL);
    if (shm) snprintf(address, sizeof address, "shm:%s", name);
    else OK(lapce_ipc_server_address(server, address, sizeof address));
    options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    options.timeout_ms = comes_back ? 20000 : 50;
    OK(lapce_ipc_connect(address, &options, &client));
    OK(lapce_ipc_reserve(client, LAPCE_IPC_ECHO, 3000, &data, NULL));
    fill(data, 1000, 1);
    OK(lapce_ipc_server_stop(server));
    if (comes_back) server = serve(shm ? NULL : address, shm ? name : NULL);
    fill(data, 3000, 1);
    /* After a rest, a client with nothing in flight looks whether its server is still there. */
    nanosleep(&rest, NULL);
    if (comes_back) {
        OK(lapce_ipc_commit(client, 2900, &id));
        OK(lapce_ipc_wait(client, id, &answer));
        CHECK(holds(&answer, 2900, 1));
        OK(lapce_ipc_server_stop(server));
    } else {
        CHECK(lapce_ipc_commit(client, 2900, &id) < 0);
        /* It has ended with the commit that failed. */
        CODE(-EINVAL, lapce_ipc_abort(client));
    }
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    among_others(argv[1]);
    mistakes(argv[1]);
    with_descriptor(argv[1]);
    for (int comes_back = 0; comes_back < 2; comes_back++) server_goes(is_shm(argv[1]), comes_back);
    return 0;
}
