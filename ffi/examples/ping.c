/* Measures round trips: ping ADDRESS [COUNT], for example ping 127.0.0.1:8080 or ping shm: 10000 */
#include <inttypes.h>
#include <lapce_ipc.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client *client;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    static const double quantiles[] = { 0.5, 0.99, 0.999 };
    char payload[64] = "ping";
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : 1000;
    int code = 0;

    if (argc < 2 || count < 1) {
        fprintf(stderr, "usage: ping ADDRESS [COUNT]\n");
        return 2;
    }
    options.flags = LAPCE_IPC_RECORD_ROUND_TRIPS;
    if (lapce_ipc_connect(argv[1], &options, &client) != 0) {
        fprintf(stderr, "%s\n", lapce_ipc_last_error());
        return 1;
    }
    for (long i = 0; i < count && code == 0; i++) {
        code = lapce_ipc_call(client, LAPCE_IPC_ECHO, payload, sizeof payload, &answer);
    }
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles && code == 0; i++) {
        uint64_t ns;
        code = lapce_ipc_client_latency(client, quantiles[i], &ns);
        if (code == 0) printf("p%g %" PRIu64 " ns\n", 100 * quantiles[i], ns);
    }
    if (code != 0) fprintf(stderr, "%s (%d)\n", lapce_ipc_last_error(), code);
    lapce_ipc_buffer_free(&answer);
    lapce_ipc_close(client);
    return code != 0;
}
