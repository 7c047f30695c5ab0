/* Pools of connections: pool ADDRESS, with a server of another process that serves ECHO; then with servers of this
 * program's own that hold requests, and die. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { HELD = 0x0100, THREADS = 8, CALLS = 500 };

static void doze(void) {
    struct timespec ms = { 0, 5 * 1000000 };
    nanosleep(&ms, NULL);
}

/* As the address says, and no other way. At most so many connections. */
static lapce_ipc_pool *opened(const char *address, uint32_t max_connections) {
    lapce_ipc_client_options client = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_pool_options options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_pool *pool;

    client.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    client.timeout_ms = 20000;
    options.client = &client;
    options.timeout_ms = 20000;
    options.max_connections = max_connections;
    OK(lapce_ipc_pool_open(address, &options, &pool));
    return pool;
}

static lapce_ipc_pool_stats_t stats_of(lapce_ipc_pool *pool) {
    lapce_ipc_pool_stats_t stats = LAPCE_IPC_POOL_STATS_INIT;
    OK(lapce_ipc_pool_stats(pool, &stats));
    CHECK(stats.size == sizeof stats);
    return stats;
}

struct caller {
    lapce_ipc_pool *pool;
    pthread_t thread;
    uint16_t msg_type;
    uint32_t number;
    int code;
};

static void *call_often(void *argument) {
    struct caller *caller = argument;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    uint32_t sent[2] = { caller->number, 0 };

    for (; sent[1] < CALLS; sent[1]++) {
        if (sent[1] % 2 == 0) {
            OK(lapce_ipc_pool_call(caller->pool, LAPCE_IPC_ECHO, sent, sizeof sent, &answer));
        } else {
            OK(lapce_ipc_pool_call_within(caller->pool, 20000, LAPCE_IPC_ECHO, sent, sizeof sent, &answer));
        }
        CHECK(answer.length == sizeof sent && memcmp(answer.data, sent, sizeof sent) == 0);
    }
    /* The answer may be sent on in its own buffer. */
    OK(lapce_ipc_pool_call(caller->pool, LAPCE_IPC_ECHO, answer.data + 1, 3, &answer));
    CHECK(answer.length == 3 && memcmp(answer.data, (char *)&caller->number + 1, 3) == 0);
    lapce_ipc_buffer_free(&answer);
    return NULL;
}

static void shared(const char *address) {
    lapce_ipc_pool *pool = opened(address, 3);
    struct caller callers[THREADS];
    lapce_ipc_pool_stats_t stats = stats_of(pool);

    CHECK(stats.max_connections == 3 && stats.open == 0 && stats.acquired == 0);
    for (uint32_t i = 0; i < THREADS; i++) {
        callers[i].pool = pool;
        callers[i].number = i * 0x01020304u;
        CHECK(pthread_create(&callers[i].thread, NULL, call_often, &callers[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(callers[i].thread, NULL) == 0);
    stats = stats_of(pool);
    CHECK(stats.acquired == THREADS * (CALLS + 1));
    CHECK(stats.created >= 1 && stats.created <= 3 && stats.open == stats.created);
    CHECK(stats.reused == stats.acquired - stats.created);
    CHECK(stats.waiting == 0 && stats.exhausted == 0 && stats.broken == 0);
    OK(lapce_ipc_pool_close(pool));
}

static void taken_out(const char *address) {
    lapce_ipc_pool *pool = opened(address, 1);
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client_stats_t client_stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_pool_stats_t stats;
    lapce_ipc_client *first, *client, *own;
    uint64_t id, kept;
    void *memory;
    int fd = -1;

    OK(lapce_ipc_pool_get(pool, &first));
    OK(lapce_ipc_call(first, LAPCE_IPC_ECHO, "mine", 4, &answer));
    OK(lapce_ipc_descriptor(first, &fd));
    CHECK(fcntl(fd, F_GETFD) >= 0);
    FAILS(-EAGAIN, "20ms", lapce_ipc_pool_call_within(pool, 20, LAPCE_IPC_ECHO, "x", 1, &answer));
    CHECK(answer.length == 4 && memcmp(answer.data, "mine", 4) == 0);
    stats = stats_of(pool);
    CHECK(stats.exhausted == 1 && stats.open == 1 && stats.idle == 0);

    /* The next user sees nothing of the last: no requests, no answers, no reservation, no descriptor. */
    OK(lapce_ipc_submit(first, 0, LAPCE_IPC_ECHO, "left", 4, &id));
    OK(lapce_ipc_submit(first, 0, LAPCE_IPC_ECHO, "behind", 6, &kept));
    OK(lapce_ipc_wait(first, kept, &answer));
    OK(lapce_ipc_reserve(first, LAPCE_IPC_ECHO, 100, &memory, NULL));
    FAILS(-EBUSY, "reservation", lapce_ipc_ping(first, NULL));
    OK(lapce_ipc_pool_put(first));
    CHECK(fcntl(fd, F_GETFD) == -1);
    CODE(-EBADF, lapce_ipc_ping(first, NULL));
    CODE(-EBADF, lapce_ipc_pool_put(first));
    OK(lapce_ipc_pool_get(pool, &client));
    CHECK(client != first);
    OK(lapce_ipc_client_stats(client, &client_stats));
    CHECK(client_stats.in_flight == 0 && client_stats.sent >= 3);
    FAILS(-EINVAL, "in flight", lapce_ipc_wait(client, id, &answer));
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "fresh", 5, &answer));
    CHECK(answer.length == 5 && memcmp(answer.data, "fresh", 5) == 0);
    CHECK(stats_of(pool).created == 1);

    /* Closed, its place is free. */
    OK(lapce_ipc_close(client));
    CODE(-EBADF, lapce_ipc_pool_put(client));
    stats = stats_of(pool);
    CHECK(stats.open == 0 && stats.broken == 1);
    OK(lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, "again", 5, &answer));
    CHECK(stats_of(pool).created == 2);

    client_options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    OK(lapce_ipc_connect(address, &client_options, &own));
    FAILS(-EINVAL, "lapce_ipc_close", lapce_ipc_pool_put(own));
    OK(lapce_ipc_ping(own, NULL));
    OK(lapce_ipc_close(own));
    OK(lapce_ipc_pool_put(NULL));
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_pool_close(pool));
}

static void *call_once(void *argument) {
    struct caller *caller = argument;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;

    caller->code = lapce_ipc_pool_call(caller->pool, caller->msg_type, "x", 1, &answer);
    lapce_ipc_buffer_free(&answer);
    return NULL;
}

/* A call that waits for a connection goes on, and a client that was taken out stays good. */
static void closed_meanwhile(const char *address) {
    struct caller caller = { opened(address, 1), 0, LAPCE_IPC_ECHO, 0, -1 };
    lapce_ipc_client *client;

    OK(lapce_ipc_pool_get(caller.pool, &client));
    CHECK(pthread_create(&caller.thread, NULL, call_once, &caller) == 0);
    /* The pool's thread may wait too, to make its report. */
    while (stats_of(caller.pool).waiting == 0 || stats_of(caller.pool).exhausted > 0) doze();
    OK(lapce_ipc_pool_close(caller.pool));
    CODE(-EBADF, lapce_ipc_pool_close(caller.pool));
    OK(lapce_ipc_ping(client, NULL));
    OK(lapce_ipc_pool_put(client));
    CHECK(pthread_join(caller.thread, NULL) == 0);
    OK(caller.code);
}

static int told[2];

/* Never answers, and tells that the request is here. */
static void hold(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    lapce_ipc_responder *held;
    (void)context;
    (void)request;
    OK(lapce_ipc_detach(responder, &held));
    CHECK(write(told[1], "", 1) == 1);
}

static lapce_ipc_server *started(const char *bind, char address[64]) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server;

    options.bind = bind;
    options.workers = 1;
    options.idle = IDLE;
    options.drain_ms = 1;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_handle(server, HELD, hold, NULL));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_server_address(server, address, 64));
    return server;
}

static void dying_server(void) {
    struct caller caller = { NULL, 0, HELD, 0, -1 };
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_pool_stats_t stats;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    char address[64] = "", byte;
    int ready[2];
    pid_t child;

    CHECK(pipe(told) == 0 && pipe(ready) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        started("127.0.0.1:0", address);
        CHECK(write(ready[1], address, sizeof address) == sizeof address);
        for (;;) pause();
    }
    CHECK(read(ready[0], address, sizeof address) == sizeof address);
    caller.pool = opened(address, 2);

    /* A call that is too late leaves its connection as it was. */
    FAILS(-ETIMEDOUT, "may or may not", lapce_ipc_pool_call_within(caller.pool, 50, HELD, "x", 1, &answer));
    CHECK(read(told[0], &byte, 1) == 1);
    OK(lapce_ipc_pool_call(caller.pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    stats = stats_of(caller.pool);
    CHECK(stats.acquired == 2 && stats.reused == 1 && stats.open == 1 && stats.broken == 0);

    /* One connection breaks in use, one idle. */
    CHECK(pthread_create(&caller.thread, NULL, call_once, &caller) == 0);
    CHECK(read(told[0], &byte, 1) == 1);
    OK(lapce_ipc_pool_call(caller.pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    CHECK(pthread_join(caller.thread, NULL) == 0);
    CODE(-ECONNRESET, caller.code);
    doze();
    FAILS(-ECONNREFUSED, "lapce_ipc_server", lapce_ipc_pool_call(caller.pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    client = (lapce_ipc_client *)&answer;
    CODE(-ECONNREFUSED, lapce_ipc_pool_get(caller.pool, &client));
    CHECK(client == NULL);
    stats = stats_of(caller.pool);
    CHECK(stats.open == 0 && stats.broken == 2 && stats.connect_failed == 2);

    server = started(address, address);
    OK(lapce_ipc_pool_call(caller.pool, LAPCE_IPC_ECHO, "y", 1, &answer));
    CHECK(answer.length == 1 && answer.data[0] == 'y');
    CHECK(stats_of(caller.pool).created == 3);
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_pool_close(caller.pool));
    OK(lapce_ipc_server_stop(server));
}

static void wrong_options(void) {
    lapce_ipc_client_options client = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_pool_options options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_pool *pool = (lapce_ipc_pool *)&options;
    const char *nowhere = "127.0.0.1:1";

    FAILS(-EINVAL, "port is missing", lapce_ipc_pool_open("127.0.0.1", NULL, &pool));
    CHECK(pool == NULL);
    FAILS(-EFAULT, "address", lapce_ipc_pool_open(NULL, NULL, &pool));
    FAILS(-EFAULT, "place", lapce_ipc_pool_open(nowhere, NULL, NULL));
    options.size = 8;
    FAILS(-EINVAL, "size", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.size = sizeof options;
    options.reserved = 1;
    FAILS(-E2BIG, "not know", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.reserved = 0;
    options.max_connections = 65537;
    FAILS(-EINVAL, "65536", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.max_connections = 0;
    options.check_interval_ms = 9;
    FAILS(-EINVAL, "10 ms", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.check_interval_ms = UINT64_MAX;
    options.idle_timeout_ms = UINT64_MAX;
    options.timeout_ms = UINT64_MAX;
    options.reuse_threshold = 1.5;
    FAILS(-EINVAL, "threshold", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.reuse_threshold = (double)NAN;
    FAILS(-EINVAL, "threshold", lapce_ipc_pool_open(nowhere, &options, &pool));
    options.reuse_threshold = 1;
    options.client = &client;
    client.idle = 3;
    FAILS(-EINVAL, "waiting mode", lapce_ipc_pool_open(nowhere, &options, &pool));
    client.idle = 0;
    client.size = 0;
    FAILS(-EINVAL, "size", lapce_ipc_pool_open(nowhere, &options, &pool));
    client.size = sizeof client;
    OK(lapce_ipc_pool_open(nowhere, &options, &pool));
    CHECK(stats_of(pool).max_connections == 100);
    OK(lapce_ipc_pool_close(pool));
}

static void wrong_arguments(const char *address) {
    lapce_ipc_pool *pool = opened(address, 1);
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_pool_stats_t stats = LAPCE_IPC_POOL_STATS_INIT;
    lapce_ipc_client *client;

    FAILS(-EFAULT, "handle", lapce_ipc_pool_call(NULL, LAPCE_IPC_ECHO, "x", 1, &answer));
    FAILS(-EFAULT, "handle", lapce_ipc_pool_call_within(NULL, 10, LAPCE_IPC_ECHO, "x", 1, &answer));
    FAILS(-EFAULT, "handle", lapce_ipc_pool_get(NULL, &client));
    FAILS(-EFAULT, "handle", lapce_ipc_pool_stats(NULL, &stats));
    OK(lapce_ipc_pool_close(NULL));
    CODE(-EFAULT, lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, NULL, 1, &answer));
    CODE(-EFAULT, lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_pool_call_within(pool, 10, LAPCE_IPC_ECHO, NULL, 1, &answer));
    CODE(-EFAULT, lapce_ipc_pool_call_within(pool, 10, LAPCE_IPC_ECHO, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_pool_get(pool, NULL));
    CODE(-EFAULT, lapce_ipc_pool_stats(pool, NULL));
    answer.data = (uint8_t *)&answer;
    FAILS(-EINVAL, "damaged", lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    FAILS(-EINVAL, "damaged", lapce_ipc_pool_call_within(pool, 10, LAPCE_IPC_ECHO, "x", 1, &answer));
    answer.data = NULL;
    /* None of that took a connection. */
    CHECK(stats_of(pool).acquired == 0);
    FAILS(-EINVAL, "0x0010", lapce_ipc_pool_call(pool, 0x0010, "x", 1, &answer));
    stats.size = 4;
    FAILS(-EINVAL, "size", lapce_ipc_pool_stats(pool, &stats));

    /* A pool is no client, and the other way round. */
    OK(lapce_ipc_pool_get(pool, &client));
    CODE(-EBADF, lapce_ipc_ping((lapce_ipc_client *)pool, NULL));
    CODE(-EBADF, lapce_ipc_pool_put((lapce_ipc_client *)pool));
    CODE(-EBADF, lapce_ipc_pool_close((lapce_ipc_pool *)client));
    OK(lapce_ipc_pool_put(client));
    OK(lapce_ipc_pool_close(pool));
    CODE(-EBADF, lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    CODE(-EBADF, lapce_ipc_pool_get(pool, &client));
    CODE(-EBADF, lapce_ipc_pool_close(pool));
}

static void block_signals(void) {
    sigset_t all;
    CHECK(sigfillset(&all) == 0 && pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
}

static char control[96];

/* Not the thread that has made the connection. */
static void *call_blocked(void *argument) {
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;

    block_signals();
    for (int turn = 0; turn < 100; turn++) {
        CHECK(truncate(control, 0) == 0);
        /* Not answered, if it has to connect just then. */
        lapce_ipc_pool_call(argument, LAPCE_IPC_ECHO, "x", 1, &answer);
    }
    lapce_ipc_buffer_free(&answer);
    return NULL;
}

/* A program that waits for signals in one thread has them blocked in all others. Memory that somebody cuts short
 * must not end it, whichever thread finds it: one that calls, or else the pool's own. */
static void signals_blocked(int calls) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_pool_options pool_options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_server *server;
    lapce_ipc_pool *pool;
    char address[64];
    pthread_t thread;
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child > 0) {
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(!WIFSIGNALED(status));
        CHECK(WEXITSTATUS(status) == 0);
        return;
    }
    snprintf(address, sizeof address, "shm:pool_%d", (int)getpid());
    snprintf(control, sizeof control, "/dev/shm/lapce_ipc_v2_%s_control", address + 4);
    options.shm = address + 4;
    options.workers = 1;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    block_signals(); /* here: starting a server over shared memory lets SIGBUS in */
    pool_options.check_interval_ms = calls ? 0 : 10;
    OK(lapce_ipc_pool_open(address, &pool_options, &pool));
    OK(lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, "x", 1, &answer));
    if (calls) {
        CHECK(pthread_create(&thread, NULL, call_blocked, pool) == 0 && pthread_join(thread, NULL) == 0);
    } else {
        while (stats_of(pool).checks < 50) {
            CHECK(truncate(control, 0) == 0);
            doze();
        }
    }
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_pool_close(pool));
    OK(lapce_ipc_server_stop(server));
    _exit(0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    /* These fork: before there are threads. valgrind does not know pidfd_open. */
    dying_server();
    if (getenv("LAPCE_IPC_TEST_SPIN") == NULL) {
        signals_blocked(1);
        signals_blocked(0);
    }
    shared(argv[1]);
    taken_out(argv[1]);
    closed_meanwhile(argv[1]);
    wrong_options();
    wrong_arguments(argv[1]);
    return 0;
}
