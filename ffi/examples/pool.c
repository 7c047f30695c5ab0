/* Threads that share a pool of connections: pool ADDRESS [THREADS [CALLS]] */
#include <inttypes.h>
#include <lapce_ipc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static lapce_ipc_pool *pool;
static long calls = 1000;

/* Returns how many of its calls were answered. */
static void *work(void *argument) {
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    intptr_t answered = 0;
    (void)argument;
    for (long i = 0; i < calls; i++) {
        int code = lapce_ipc_pool_call(pool, LAPCE_IPC_ECHO, &i, sizeof i, &answer);
        if (code != 0) {
            fprintf(stderr, "%s (%d)\n", lapce_ipc_last_error(), code);
            break;
        }
        answered++;
    }
    lapce_ipc_buffer_free(&answer);
    return (void *)answered;
}

int main(int argc, char **argv) {
    lapce_ipc_pool_options options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_pool_stats_t stats = LAPCE_IPC_POOL_STATS_INIT;
    enum { THREADS_MAX = 64 };
    pthread_t threads[THREADS_MAX];
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : 8, started = 0, answered = 0;

    if (argc > 3) calls = strtol(argv[3], NULL, 10);
    if (argc < 2 || count < 1 || count > THREADS_MAX || calls < 1) {
        fprintf(stderr, "usage: pool ADDRESS [THREADS [CALLS]]\n");
        return 2;
    }
    options.max_connections = 4;
    if (lapce_ipc_pool_open(argv[1], &options, &pool) != 0) {
        fprintf(stderr, "%s\n", lapce_ipc_last_error());
        return 1;
    }
    while (started < count && pthread_create(&threads[started], NULL, work, NULL) == 0) started++;
    for (long i = 0; i < started; i++) {
        void *result;
        pthread_join(threads[i], &result);
        answered += (intptr_t)result;
    }
    if (lapce_ipc_pool_stats(pool, &stats) == 0) {
        printf("%ld answers over %" PRIu64 " connections\n", answered, stats.created);
    }
    lapce_ipc_pool_close(pool);
    return answered != count * calls;
}
