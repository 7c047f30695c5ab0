/* Errors that the system or a busy server causes: calls that the kernel forbids, too many requests, a server
 * that stops. */
#define _GNU_SOURCE
#include "check.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HELD = 0x0100, HELD_MAX = 4 };

static lapce_ipc_responder *held[HELD_MAX];
static atomic_int count;

static lapce_ipc_server_options server_options(void) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    options.bind = "127.0.0.1:0";
    options.workers = 1;
    options.idle = IDLE;
    return options;
}

/* The same over shared memory alone, of an instance of this name and process; and where clients connect to. */
static lapce_ipc_server_options shm_options(const char *name, char instance[32], char address[64]) {
    lapce_ipc_server_options options = server_options();
    snprintf(instance, 32, "%s_%d", name, (int)getpid());
    snprintf(address, 64, "shm:%s", instance);
    options.bind = NULL;
    options.shm = instance;
    return options;
}

/* A child has done all that it was to do. */
static void ends_well(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A child that has all that this process has open, and does nothing. */
static pid_t forked_child(void) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        pause();
        _exit(0);
    }
    return child;
}

static void end_child(pid_t child) {
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

/* Starts a server in a child that may not use one system call: it must fail with this code. */
static void without(int system_call, int error, int code, const char *words) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)system_call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        lapce_ipc_server_options options = server_options();
        lapce_ipc_server *server;
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
        OK(lapce_ipc_server_new(&options, &server));
        FAILS(code, words, lapce_ipc_server_start(server));
        OK(lapce_ipc_server_stop(server));
        _exit(0);
    }
    ends_well(child);
}

/* A server whose process may have so little of something is full, sooner or later, and says so. */
static void full_for_want(int resource, rlim_t limit) {
    char instance[32], address[64], byte;
    lapce_ipc_server_options options = shm_options("want", instance, address);
    lapce_ipc_server *server;
    lapce_ipc_client *clients[64];
    int go[2], ready[2], code, connected = 0;
    pid_t child;

    CHECK(pipe(go) == 0 && pipe(ready) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        const struct rlimit limits = { limit, limit };
        CHECK(close(go[1]) == 0 && setrlimit(resource, &limits) == 0);
        OK(lapce_ipc_server_new(&options, &server));
        OK(lapce_ipc_server_start(server));
        CHECK(write(ready[1], "", 1) == 1 && read(go[0], &byte, 1) == 1);
        OK(lapce_ipc_server_stop(server));
        _exit(0);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    while ((code = lapce_ipc_connect(address, NULL, &clients[connected])) == 0) {
        connected++;
        CHECK(connected < 64);
    }
    CHECK(code == LAPCE_IPC_OVERLOADED);
    while (connected > 0) OK(lapce_ipc_close(clients[--connected]));
    CHECK(write(go[1], "", 1) == 1);
    ends_well(child);
    CHECK(close(go[0]) == 0 && close(go[1]) == 0 && close(ready[0]) == 0 && close(ready[1]) == 0);
}

static void hold(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    (void)request;
    CHECK(atomic_load(&count) < HELD_MAX);
    OK(lapce_ipc_detach(responder, &held[atomic_load(&count)]));
    atomic_fetch_add(&count, 1);
}

static void busy_and_stopping(void) {
    lapce_ipc_server_options options = server_options();
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    char address[64];
    uint64_t first, second;
    int code;

    options.max_inflight_per_connection = 1;
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_handle(server, HELD, hold, NULL));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_server_address(server, address, sizeof address));
    client_options.flags = LAPCE_IPC_NO_SHM_UPGRADE | LAPCE_IPC_NO_RECONNECT;
    OK(lapce_ipc_connect(address, &client_options, &client));

    /* One is being worked on, and more may not be. */
    OK(lapce_ipc_submit(client, 0, HELD, "1", 1, &first));
    OK(lapce_ipc_submit(client, 0, HELD, "2", 1, &second));
    CODE(LAPCE_IPC_OVERLOADED, lapce_ipc_wait(client, second, &answer));
    CHECK(atomic_load(&count) == 1);

    /* A server that stops starts nothing new, and delivers what it owes. */
    OK(lapce_ipc_server_begin_stop(server));
    do {
        code = lapce_ipc_call(client, HELD, "3", 1, &answer);
    } while (code == LAPCE_IPC_OVERLOADED); /* it has not heard of it yet */
    CODE(LAPCE_IPC_SHUTTING_DOWN, code);
    OK(lapce_ipc_reply(held[0], "at last", 7));
    OK(lapce_ipc_wait(client, first, &answer));
    CHECK(answer.length == 7 && memcmp(answer.data, "at last", 7) == 0);
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
    OK(lapce_ipc_server_stop(server));
}

/* A program that waits for signals in one thread has them blocked in all others. Memory that somebody cuts short
 * must not end it all the same. */
static void signals_blocked(void) {
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        char instance[32], address[64], path[96];
        lapce_ipc_server_options options = shm_options("blocked", instance, address);
        lapce_ipc_server *server;
        lapce_ipc_client *client;
        sigset_t all;

        CHECK(sigfillset(&all) == 0 && pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
        snprintf(path, sizeof path, "/dev/shm/lapce_ipc_v2_%s_control", instance);
        OK(lapce_ipc_server_new(&options, &server));
        OK(lapce_ipc_server_start(server));
        CHECK(truncate(path, 0) == 0);
        usleep(500 * 1000);
        /* The server's threads, and this one. */
        OK(lapce_ipc_connect(address, NULL, &client));
        CHECK(truncate(path, 0) == 0);
        OK(lapce_ipc_ping(client, NULL));
        OK(lapce_ipc_close(client));
        OK(lapce_ipc_server_stop(server));
        _exit(0);
    }
    ends_well(child);
}

/* Starting and stopping a server interrupts nothing that its program does then. */
static void undisturbed(void) {
    const struct timespec at_most = { 0, 200 * 1000 * 1000 };
    lapce_ipc_server_options options = server_options();
    lapce_ipc_server *server;
    sigset_t none;

    CHECK(sigemptyset(&none) == 0);
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    CHECK(sigtimedwait(&none, NULL, &at_most) == -1 && errno == EAGAIN);
    OK(lapce_ipc_server_stop(server));
    CHECK(sigtimedwait(&none, NULL, &at_most) == -1 && errno == EAGAIN);
}

/* A client that executes another program has left its connection, though its process lives on. */
static void executed(void) {
    char instance[32], address[64];
    lapce_ipc_server_options options = shm_options("executed", instance, address);
    lapce_ipc_server_stats_t stats = LAPCE_IPC_SERVER_STATS_INIT;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    pid_t child;
    int turn;

    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_connect(address, NULL, &client));
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        lapce_ipc_client *other;
        OK(lapce_ipc_connect(address, NULL, &other));
        OK(lapce_ipc_ping(other, NULL));
        execlp("sleep", "sleep", "1000", (char *)NULL);
        _exit(1);
    }
    for (turn = 0; turn < 2000; turn++) {
        OK(lapce_ipc_server_stats(server, &stats));
        if (stats.shm.connections_total == 2 && stats.shm.connections == 1) break;
        usleep(10 * 1000);
    }
    CHECK(turn < 2000 && waitpid(child, NULL, WNOHANG) == 0);
    /* Who keeps his is left in peace. */
    OK(lapce_ipc_ping(client, NULL));
    OK(lapce_ipc_close(client));
    OK(lapce_ipc_server_stop(server));
    end_child(child);
}

/* A server whose program executes another one has gone too: its clients hear of it, and find the next. */
static void server_executed(void) {
    char instance[32], address[64];
    lapce_ipc_server_options options = shm_options("server", instance, address);
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    int go[2], ready[2];
    char byte;
    int code;
    pid_t child;

    CHECK(pipe(go) == 0 && pipe(ready) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        OK(lapce_ipc_server_new(&options, &server));
        OK(lapce_ipc_server_start(server));
        CHECK(write(ready[1], "", 1) == 1 && read(go[0], &byte, 1) == 1);
        execlp("sleep", "sleep", "1000", (char *)NULL);
        _exit(1);
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    client_options.timeout_ms = 20000;
    OK(lapce_ipc_connect(address, &client_options, &client));
    OK(lapce_ipc_ping(client, NULL));
    CHECK(write(go[1], "", 1) == 1);
    /* Once nobody answers, it does not take the timeout to see that. */
    do {
        code = lapce_ipc_call(client, LAPCE_IPC_ECHO, "x", 1, &answer);
    } while (code == 0);
    CHECK(code == -ECONNRESET || code == -ENOENT || code == -EPIPE);
    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_ping(client, NULL));
    OK(lapce_ipc_close(client));
    OK(lapce_ipc_server_stop(server));
    lapce_ipc_buffer_free(&answer);
    CHECK(waitpid(child, NULL, WNOHANG) == 0);
    end_child(child);
}

/* How many TCP connections the server has, once those that were closed are gone. */
static uint64_t connections(lapce_ipc_server *server) {
    lapce_ipc_server_stats_t stats = LAPCE_IPC_SERVER_STATS_INIT;

    for (int turn = 0; turn < 1000; turn++) {
        OK(lapce_ipc_server_stats(server, &stats));
        if (stats.tcp.connections == 0) break;
        usleep(10 * 1000);
    }
    return stats.tcp.connections;
}

/* A child that the program has forked has all its descriptors, and keeps nothing open by that. */
static void forked(void) {
    lapce_ipc_server_options options = server_options();
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_server *server, *next;
    lapce_ipc_client *client;
    struct pollfd polled = { -1, POLLIN, 0 };
    char address[64];
    pid_t child;
    int turn;

    OK(lapce_ipc_server_new(&options, &server));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_server_address(server, address, sizeof address));
    client_options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    OK(lapce_ipc_connect(address, &client_options, &client));
    OK(lapce_ipc_descriptor(client, &polled.fd));
    OK(lapce_ipc_ping(client, NULL));
    child = forked_child();

    /* The port is free again. */
    OK(lapce_ipc_server_stop(server));
    options.bind = address;
    OK(lapce_ipc_server_new(&options, &next));
    OK(lapce_ipc_server_start(next));

    /* The descriptor tells of the new connection, and not of the old one's end for ever. */
    OK(lapce_ipc_ping(client, NULL));
    for (turn = 0; turn < 1000 && poll(&polled, 1, 20) > 0; turn++) {
        while (lapce_ipc_poll(client, &answer) == 0) {}
    }
    CHECK(turn < 1000);

    /* A client that is closed is gone, also if its child has its socket. */
    end_child(child);
    child = forked_child();
    OK(lapce_ipc_close(client));
    CHECK(connections(next) == 0);
    OK(lapce_ipc_server_stop(next));
    end_child(child);
    lapce_ipc_buffer_free(&answer.payload);
}

int main(void) {
    lapce_ipc_client *client;

    /* A name that no resolver needs to be asked about. */
    FAILS(-EHOSTUNREACH, "a..b", lapce_ipc_connect("a..b:1", NULL, &client));
    /* valgrind makes system calls of its own for the program, and would meet the filter. */
    if (getenv("LAPCE_IPC_TEST_SPIN") == NULL) {
        without(SYS_io_uring_setup, EPERM, -ENOSYS, "io_uring");
        without(SYS_bind, EACCES, -EACCES, "127.0.0.1");
        full_for_want(RLIMIT_NOFILE, 40);
        full_for_want(RLIMIT_FSIZE, 64 * 1024);
        signals_blocked();
        undisturbed();
        forked();
        executed();
        server_executed();
    }
    busy_and_stopping();
    return 0;
}
