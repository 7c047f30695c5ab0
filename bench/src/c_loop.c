/* The closed loop of scenarios/c_client.rs, by a C program: the same bytes, the same clock, the same
 * comparisons outside the timed part. */

#include "lapce_ipc.h"

#include <string.h>

/* Calls with 64 bytes until the time is over or the array is full; *count times are in ns. Returns 0,
 * what the library returned, or -1 for wrong bytes. */
int lapce_bench_c_loop(const char *address, uint32_t idle, uint64_t (*now)(void), size_t warm_up,
                       uint64_t duration_ns, uint64_t *ns, size_t ns_max, size_t *count) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    options.idle = idle;
    options.timeout_ms = 10000;
    options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    lapce_ipc_client *client;
    int result = lapce_ipc_connect(address, &options, &client);
    if (result != 0) return result;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    unsigned char sent[64];
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (unsigned char)(i * 31 + 7);
    uint64_t end = UINT64_MAX;
    *count = 0;
    for (uint64_t number = 0; *count < ns_max; number++) {
        memcpy(sent, &number, sizeof number);
        uint64_t start = now();
        result = lapce_ipc_call(client, LAPCE_IPC_ECHO, sent, sizeof sent, &answer);
        uint64_t done = now();
        if (result != 0) break;
        if (answer.length != sizeof sent || memcmp(answer.data, sent, sizeof sent) != 0) {
            result = -1;
            break;
        }
        if (number >= warm_up) ns[(*count)++] = done - start;
        if (number + 1 == warm_up) end = done + duration_ns;
        if (done >= end) break;
    }
    lapce_ipc_buffer_free(&answer);
    lapce_ipc_close(client);
    return result;
}
