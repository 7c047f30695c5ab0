/*
 * Serves three message types until its input ends: server [ADDRESS [SHM-INSTANCE]]
 *   0x0100  answers at once: the payload in upper case
 *   0x0101  answers later, from another thread
 *   0x0102  answers with a stream: one part for each byte of the payload
 */
#include <ctype.h>
#include <lapce_ipc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void upper(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    const unsigned char *from = request->payload;
    unsigned char *to = malloc(request->payload_bytes + 1);
    (void)context;
    if (to == NULL) {
        lapce_ipc_reply_error(responder, LAPCE_IPC_OVERLOADED, "no memory");
        return;
    }
    for (size_t i = 0; i < request->payload_bytes; i++) to[i] = (unsigned char)toupper(from[i]);
    lapce_ipc_reply(responder, to, request->payload_bytes);
    free(to);
}

static void *work(void *argument) {
    lapce_ipc_responder *responder = argument;
    /* Long work would be here. -EPIPE, because the requester has gone, needs no care. */
    lapce_ipc_reply(responder, "done", 4);
    return NULL;
}

static void later(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    lapce_ipc_responder *detached;
    pthread_t thread;
    (void)context;
    (void)request;
    if (lapce_ipc_detach(responder, &detached) != 0) return;
    /* A real program would keep its threads and give them work. */
    if (pthread_create(&thread, NULL, work, detached) != 0) {
        lapce_ipc_reply_error(detached, LAPCE_IPC_OVERLOADED, "no thread");
        return;
    }
    pthread_detach(thread);
}

static void spell(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    const char *bytes = request->payload;
    (void)context;
    for (size_t i = 0; i < request->payload_bytes; i++) lapce_ipc_reply_part(responder, bytes + i, 1);
    lapce_ipc_reply(responder, NULL, 0);
}

/* Connections that were cut off, say. */
static void tell(void *context, int level, const char *text) {
    (void)context;
    fprintf(stderr, "%s: %s\n", level <= LAPCE_IPC_LOG_WARN ? "warning" : "note", text);
}

int main(int argc, char **argv) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_server *server;
    char address[64];
    int code;

    options.bind = argc > 1 ? argv[1] : "127.0.0.1:0";
    options.shm = argc > 2 ? argv[2] : NULL;
    options.workers = 1;
    lapce_ipc_set_log(LAPCE_IPC_LOG_INFO, tell, NULL);
    code = lapce_ipc_server_new(&options, &server);
    if (code == 0) code = lapce_ipc_server_handle(server, 0x0100, upper, NULL);
    if (code == 0) code = lapce_ipc_server_handle(server, 0x0101, later, NULL);
    if (code == 0) code = lapce_ipc_server_handle(server, 0x0102, spell, NULL);
    if (code == 0) code = lapce_ipc_server_start(server);
    if (code == 0) code = lapce_ipc_server_address(server, address, sizeof address);
    if (code == 0) {
        printf("%s\n", address);
        fflush(stdout);
        while (getchar() != EOF) {
        }
    } else {
        fprintf(stderr, "%s\n", lapce_ipc_last_error());
    }
    lapce_ipc_server_stop(server);
    return code != 0;
}
