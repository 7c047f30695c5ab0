/* Children that the program forks: the parent's handles are closed in them, and they may open their own. */
#define _GNU_SOURCE
#include "check.h"

#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, CHILDREN = 40 };

/* The sanitizer's own allocator may stay locked in a child. */
#ifdef __SANITIZE_ADDRESS__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

static char address[64], shm_address[64];
static atomic_bool stop;

static lapce_ipc_server *start(char *instance) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server;
    options.bind = "127.0.0.1:0";
    options.workers = 1;
    options.idle = IDLE;
    options.shm = instance;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_server_address(server, address, sizeof address));
    return server;
}

static void echo(lapce_ipc_client *client) {
    lapce_ipc_buffer got = LAPCE_IPC_BUFFER_INIT;
    OK(lapce_ipc_call(client, LAPCE_IPC_ECHO, "mine", 4, &got));
    CHECK(got.length == 4 && memcmp(got.data, "mine", 4) == 0);
    lapce_ipc_buffer_free(&got);
}

/* By another program: valgrind looks for leaks at a process's end, and the parent's threads are none of the child's. */
static void end_well(void) {
    execlp("true", "true", (char *)NULL);
    _exit(1);
}

static void finish(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The parent's connection is not touched: not by calls, and not by a close. */
static void inherited(const char *where, lapce_ipc_server *server) {
    lapce_ipc_pool_options options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_client *client, *own;
    lapce_ipc_pool *pool;
    pid_t child;

    OK(lapce_ipc_connect(where, NULL, &client));
    OK(lapce_ipc_pool_open(where, &options, &pool));
    echo(client);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60);
        CODE(-EBADF, lapce_ipc_ping(client, NULL));
        CODE(-EBADF, lapce_ipc_close(client));
        CODE(-EBADF, lapce_ipc_pool_close(pool));
        CODE(-EBADF, lapce_ipc_server_stop(server));
        OK(lapce_ipc_connect(where, NULL, &own));
        echo(own);
        CODE(-EBADF, lapce_ipc_ping(client, NULL));
        OK(lapce_ipc_close(own));
        end_well();
    }
    finish(child);
    echo(client);
    OK(lapce_ipc_pool_close(pool));
    OK(lapce_ipc_close(client));
}

static void *open_and_close(void *where) {
    while (!atomic_load(&stop)) {
        lapce_ipc_client *client;
        OK(lapce_ipc_connect(where, NULL, &client));
        echo(client);
        OK(lapce_ipc_close(client));
    }
    return NULL;
}

/* Whatever the other threads are doing, a child finds no lock that stays locked. */
static void at_any_moment(char *where) {
    pthread_t threads[THREADS];
    int n;

    for (n = 0; n < THREADS; n++) {
        CHECK(pthread_create(&threads[n], NULL, open_and_close, where) == 0);
    }
    for (n = 0; n < CHILDREN; n++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            lapce_ipc_client *own;
            alarm(60);
            OK(lapce_ipc_connect(where, NULL, &own));
            echo(own);
            OK(lapce_ipc_close(own));
            end_well();
        }
        finish(child);
    }
    atomic_store(&stop, 1);
    for (n = 0; n < THREADS; n++) {
        CHECK(pthread_join(threads[n], NULL) == 0);
    }
}

static atomic_bool told, go_on;

static void tell_for_long(void *context, int level, const char *text) {
    (void)context, (void)level, (void)text;
    atomic_store(&told, 1);
    while (!atomic_load(&go_on)) usleep(1000);
}

/* The log's function runs on a thread that the child does not have: there it may be replaced all the same. */
static void while_told(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char junk[64] = "this is no frame";
    int peer = socket(AF_INET, SOCK_STREAM, 0);
    pid_t child;

    OK(lapce_ipc_set_log(LAPCE_IPC_LOG_WARN, tell_for_long, NULL));
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    CHECK(connect(peer, (struct sockaddr *)&to, sizeof to) == 0);
    CHECK(write(peer, junk, sizeof junk) == (ssize_t)sizeof junk);
    while (!atomic_load(&told)) usleep(1000);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(20);
        OK(lapce_ipc_set_log(LAPCE_IPC_LOG_WARN, NULL, NULL));
        end_well();
    }
    finish(child);
    atomic_store(&go_on, 1);
    OK(lapce_ipc_set_log(LAPCE_IPC_LOG_WARN, NULL, NULL));
    close(peer);
}

int main(void) {
    char instance[32];
    int by_shm = getenv("LAPCE_IPC_TEST_SPIN") == NULL;
    lapce_ipc_server *server;

    snprintf(instance, sizeof instance, "forks_%ld", (long)getpid());
    snprintf(shm_address, sizeof shm_address, "shm:%s", instance);
    /* valgrind does not know pidfd_open. */
    server = start(by_shm ? instance : NULL);
    inherited(address, server);
    if (by_shm) {
        inherited(shm_address, server);
        if (!SANITIZED) at_any_moment(address);
    }
    while_told();
    OK(lapce_ipc_server_stop(server));
    return 0;
}
