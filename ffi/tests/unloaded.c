/* A plugin's host: it loads the library by name, uses it on a thread that ends, and unloads it. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void count(int number) {
    (void)number;
    signals++;
}

/* A server over shared memory, which makes the library handle SIGBUS. */
static void *use(void *library) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    int (*new_)(const lapce_ipc_server_options *, lapce_ipc_server **);
    int (*start)(lapce_ipc_server *);
    int (*stop)(lapce_ipc_server *);
    lapce_ipc_server *server;
    char instance[32];

    *(void **)&new_ = dlsym(library, "lapce_ipc_server_new");
    *(void **)&start = dlsym(library, "lapce_ipc_server_start");
    *(void **)&stop = dlsym(library, "lapce_ipc_server_stop");
    snprintf(instance, sizeof instance, "unloaded_%ld", (long)getpid());
    options.shm = instance;
    options.workers = 1;
    CHECK(new_(&options, &server) == 0 && start(server) == 0 && stop(server) == 0);
    return NULL;
}

int main(void) {
    struct sigaction action = { .sa_handler = count };

    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    for (int turn = 0; turn < 2; turn++) {
        void *library = dlopen("liblapce_ipc.so.1", RTLD_NOW | RTLD_LOCAL);
        pthread_t thread;
        CHECK(library != NULL);
        CHECK(pthread_create(&thread, NULL, use, library) == 0 && pthread_join(thread, NULL) == 0);
        CHECK(dlclose(library) == 0);
    }
    /* The library's handler is still there, and passes on what is not its own. */
    CHECK(raise(SIGBUS) == 0 && signals == 1);
    return 0;
}
