/* What the tests share. A check that fails says where and ends the program. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <lapce_ipc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                    \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);       \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* A call must return this code. */
#define CODE(code, call)                                                                    \
    do {                                                                                    \
        int code_ = (call);                                                                 \
        if (code_ != (code)) {                                                              \
            fprintf(stderr, "%s:%d: %s is %d, not %d: %s\n", __FILE__, __LINE__, #call,     \
                    code_, (code), lapce_ipc_last_error());                                 \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

#define OK(call) CODE(0, call)

/* A call must fail with this code and with a text that contains these words. */
#define FAILS(code, words, call)                                                            \
    do {                                                                                    \
        CODE(code, call);                                                                   \
        if (strstr(lapce_ipc_last_error(), (words)) == NULL) {                              \
            fprintf(stderr, "%s:%d: \"%s\" does not contain \"%s\"\n", __FILE__, __LINE__,  \
                    lapce_ipc_last_error(), (words));                                       \
            exit(1);                                                                        \
        }                                                                                   \
    } while (0)

/* How the tests' own servers wait. valgrind lets nobody else run while a thread sleeps in io_uring_enter,
 * so under it they must not sleep. */
#define IDLE (getenv("LAPCE_IPC_TEST_SPIN") != NULL ? LAPCE_IPC_SPIN : LAPCE_IPC_ADAPTIVE)

#endif
