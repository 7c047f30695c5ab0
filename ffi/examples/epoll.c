/* Sends requests and takes the answers in an epoll loop: epoll ADDRESS [COUNT] */
#include <errno.h>
#include <lapce_ipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

static int fail(int code) {
    fprintf(stderr, "%s (%d)\n", lapce_ipc_last_error(), code);
    return 1;
}

int main(int argc, char **argv) {
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_client *client;
    struct epoll_event event = { .events = EPOLLIN };
    long count = argc > 2 ? strtol(argv[2], NULL, 10) : 10;
    long answered = 0;
    int descriptor, loop, code;

    if (argc < 2) {
        fprintf(stderr, "usage: epoll ADDRESS [COUNT]\n");
        return 2;
    }
    code = lapce_ipc_connect(argv[1], NULL, &client);
    if (code == 0) code = lapce_ipc_descriptor(client, &descriptor);
    if (code != 0) return fail(code);
    loop = epoll_create1(EPOLL_CLOEXEC);
    if (loop < 0 || epoll_ctl(loop, EPOLL_CTL_ADD, descriptor, &event) != 0) {
        perror("epoll");
        return 1;
    }
    for (long i = 0; i < count && code == 0; i++) {
        uint64_t id;
        code = lapce_ipc_submit(client, 0, LAPCE_IPC_ECHO, &i, sizeof i, &id);
    }
    /* First poll, which also sends; then sleep until there is something to poll. */
    while (code == 0 && answered < count) {
        while ((code = lapce_ipc_poll(client, &answer)) == 0) {
            if (answer.status != 0) fprintf(stderr, "%s\n", (const char *)answer.payload.data);
            answered += answer.last;
        }
        if (code != -EAGAIN) break;
        code = 0;
        if (answered < count && epoll_wait(loop, &event, 1, 5000) == 0) {
            fprintf(stderr, "no answer for 5 s\n");
            code = -ETIMEDOUT;
        }
    }
    if (code == 0) {
        printf("%ld answers\n", answered);
    } else {
        fail(code);
    }
    lapce_ipc_buffer_free(&answer.payload);
    lapce_ipc_close(client);
    close(loop);
    return code != 0;
}
