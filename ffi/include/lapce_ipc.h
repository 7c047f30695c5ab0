/*
 * lapce_ipc.h - framed messages between programs, over TCP and shared memory.
 *
 * A client in five lines (ffi/examples has more):
 *
 *     lapce_ipc_client *client;
 *     lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
 *     if (lapce_ipc_connect("127.0.0.1:8080", NULL, &client) != 0) { puts(lapce_ipc_last_error()); exit(1); }
 *     if (lapce_ipc_call(client, LAPCE_IPC_ECHO, "hello", 5, &answer) == 0) fwrite(answer.data, 1, answer.length, stdout);
 *     lapce_ipc_buffer_free(&answer);
 *     lapce_ipc_close(client);
 *
 * RESULTS. A function that returns int returns 0 if it did what it says, else a code:
 *     positive  the server answered with this error of the protocol, see lapce_ipc_code;
 *     negative  the negative of an errno value, see "System codes" below.
 * lapce_ipc_last_error() has the text, lapce_ipc_strerror() a short one for any code. When a
 * function fails, what its pointers to results point to is unchanged unless it says otherwise.
 *
 * HANDLES (clients, pools, servers, responders) are pointers in name only: never follow or compare the
 * bits of one. Each function checks its handle, so that NULL (-EFAULT), a closed handle or one of
 * another kind (-EBADF) does no harm. A handle is told from those closed before it for at least a
 * million handles of its kind.
 *
 * OTHER POINTERS must be good: a NULL or misaligned one is an error (-EFAULT), the rest cannot be
 * known. Payloads are only read, and only until the function returns. A payload of 0 bytes may have
 * any pointer, NULL too.
 *
 * THREADS. A client is used by one thread at a time, whichever; a call that meets another one on the
 * same client returns -EBUSY. Everything else may be called from any thread at any time: threads that want
 * to share connections share a pool. A thread that is cancelled (pthread_cancel) while it is in a function of
 * this library ends the process: disable that around the call with pthread_setcancelstate.
 *
 * FORK. After fork() the handles of the parent are closed handles in the child (-EBADF), and what they stand for goes
 * on in the parent. The child may open its own. Not in a handler or in the log's function: there the child must do
 * nothing but _exit or exec.
 * A child that is made in another way than by fork() (by vfork() or clone()) must do the same.
 *
 * SIGNALS. Memory that another process has cut short raises SIGBUS. The library handles it, and passes on
 * what is not its own to the handler that was there before. It unblocks SIGBUS in the threads that it starts
 * and in one that connects or uses a pool; another thread that uses a client over shared memory must not
 * block it, nor any of them later.
 * For the handler's sake the shared library stays loaded after dlclose; link a plugin that contains the
 * static library with -Wl,-z,nodelete.
 *
 * STRUCTS begin with their size, which the ..._INIT macros set, so that later versions of the library
 * can add fields at the end: a program compiled with an older header goes on working. One compiled
 * with a newer header gets -E2BIG if it uses a field that the library does not know.
 *
 * MESSAGE TYPES 0, 4, 5 and 0x10 to 0xFF belong to the protocol; a program uses any others.
 */
#ifndef LAPCE_IPC_H
#define LAPCE_IPC_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------------------------- version */

/* The binary interface described here. It changes when a program would have to be compiled anew;
 * the shared library's name, liblapce_ipc.so.1, changes with it. */
#define LAPCE_IPC_ABI_VERSION 1

/* That of the library in use: compare it with LAPCE_IPC_ABI_VERSION after loading by hand. */
uint32_t lapce_ipc_abi_version(void);

/* The library's version, "1.0.0" for example. Lives for ever. */
const char *lapce_ipc_version(void);

/* -------------------------------------------------------------------------------------- errors */

/* Errors of the protocol: a server answers with them, and its handlers may. */
enum lapce_ipc_code {
    LAPCE_IPC_OK = 0,
    LAPCE_IPC_BAD_MAGIC = 1,
    LAPCE_IPC_VERSION_MISMATCH = 2,
    LAPCE_IPC_CRC_MISMATCH = 3,
    LAPCE_IPC_TOO_LARGE = 4,
    LAPCE_IPC_UNKNOWN_TYPE = 5, /* nobody serves this message type */
    LAPCE_IPC_BAD_FLAGS = 6,
    LAPCE_IPC_UNAUTHORIZED = 7,
    LAPCE_IPC_OVERLOADED = 8,     /* not started: may be sent again */
    LAPCE_IPC_PROVIDER_LOST = 9,  /* may or may not have been carried out */
    LAPCE_IPC_HANDLER_FAILED = 10,
    LAPCE_IPC_SERVER_TIMEOUT = 11,
    LAPCE_IPC_CANCELLED = 12,
    LAPCE_IPC_SHUTTING_DOWN = 13, /* not started */
    LAPCE_IPC_BAD_PAYLOAD = 14,
    LAPCE_IPC_UNKNOWN_CODE = 65535 /* the server used a code that is not in this list */
};

/*
 * System codes, each the negative of a value of <errno.h>:
 *
 *   EAGAIN           lapce_ipc_poll: no answer is here; of what sends: nothing was queued, because as many
 *                    requests as may be were in flight, or the server did not read, for timeout_ms; of a
 *                    pool: the same, or all of its connections stayed in use for that long
 *   ENOTCONN         the server is gone, and it is too early to try again, as lapce_ipc_submit and
 *                    lapce_ipc_send do; nothing was sent; try again within 80 ms
 *   ECONNRESET       the connection was lost; the request may or may not have been carried out
 *   EPIPE            the connection was lost before the request was sent; of a responder: the
 *                    answer was dropped, lapce_ipc_last_error() says why
 *   ETIMEDOUT        no answer in time; the request may or may not have been carried out
 *   ECONNREFUSED, EHOSTUNREACH and others of connect(2)
 *                    no connection could be made; EHOSTUNREACH: the name has no address
 *   ENOENT           there is no server behind this shm: address
 *   EMSGSIZE         the payload is longer than max_message_bytes; nothing was sent
 *   ENOBUFS          answers that were not collected passed max_unread_bytes, and this one was
 *                    thrown away; of a function that writes text: there is too little room
 *   EPROTO           the server broke the protocol
 *   EINVAL           an argument cannot be; the text says which and why
 *   E2BIG            a struct has a field set that this version does not know
 *   EFAULT           a pointer is NULL or misaligned
 *   EBADF            the handle is closed, of another kind, or was never one
 *   EBUSY            the client is in use: by another thread, by the function that called back, or by
 *                    a reservation that is open; the server is being started
 *   ENODATA          nothing was measured, or the server did not say
 *   EDEADLK          a handler asked to wait for its own server, or the log's function for itself
 *   EADDRINUSE, EACCES and others of bind(2)
 *                    the server cannot listen there
 *   EEXIST           the server cannot offer shared memory; the text says why
 *   ENOSYS           there is no io_uring for the server; the text names the remedy
 *   EMFILE           too many handles or descriptors
 *   ENFILE, ENOMEM, EAGAIN
 *                    the system has not enough descriptors, memory or threads for a server
 *   ENOTRECOVERABLE  a mistake in this library; please report the text
 */

/* A short text for a code. Lives for ever for codes of the protocol, else until this thread calls it
 * again. Never NULL. */
const char *lapce_ipc_strerror(int code);

/* What went wrong in this thread's last function that failed, in a sentence. Lives until this thread's
 * next failure; "" before the first. Never NULL. That lapce_ipc_poll has nothing (-EAGAIN) is no failure here. */
const char *lapce_ipc_last_error(void);

/* ---------------------------------------------------------------------------------------- log */

/* How much a line matters. */
#define LAPCE_IPC_LOG_ERROR 1 /* a bug of this library, or damage that it cannot repair */
#define LAPCE_IPC_LOG_WARN 2  /* a connection that the server cut off or refused, say, and why */
#define LAPCE_IPC_LOG_INFO 3
#define LAPCE_IPC_LOG_DEBUG 4

/* Gets what an operator should know: one line without its end, which lives until the function returns. It runs
 * on any thread, the server's too, on several at a time. It must not block (a handler's rule), must return, and
 * must not use clients, pools, servers or responders; what it causes to be logged is left out. */
typedef void (*lapce_ipc_log)(void *context, int level, const char *text);

/* From now on, lines of this level and of those that matter more go to log, with context as it is; NULL for log
 * is the default: they go nowhere. For the whole process, and best done before the first server. When it returns,
 * the function that was set before does not run and will not. -EINVAL for another level, -EDEADLK in log. */
int lapce_ipc_set_log(int level, lapce_ipc_log log, void *context);

/* ------------------------------------------------------------------------------------- buffers */

/* Memory of the library for an answer. It begins as LAPCE_IPC_BUFFER_INIT; the program reads data and
 * length, and changes nothing. Passing the same one to the next call uses its memory again, so that
 * nothing is allocated; lapce_ipc_buffer_free ends it. */
typedef struct lapce_ipc_buffer {
    uint8_t *data;   /* NULL if there is no memory */
    size_t length;   /* bytes of the answer */
    size_t capacity; /* the library's */
} lapce_ipc_buffer;

#define LAPCE_IPC_BUFFER_INIT { NULL, 0, 0 }

/* Frees the memory and leaves the buffer as LAPCE_IPC_BUFFER_INIT. NULL and empty ones are fine. */
void lapce_ipc_buffer_free(lapce_ipc_buffer *buffer);

/* ------------------------------------------------------------------------------------- clients */

typedef struct lapce_ipc_client lapce_ipc_client;

/* Message types of the protocol that a program may send. */
#define LAPCE_IPC_HEARTBEAT 0x0005 /* the answer repeats the payload */
#define LAPCE_IPC_ECHO 0x00F0      /* the same, dispatched as an application's type is */

/* How to wait. */
#define LAPCE_IPC_ADAPTIVE 0 /* awake while something is expected soon, else asleep */
#define LAPCE_IPC_SPIN 1     /* always awake: the lowest latency, for the price of a core */
#define LAPCE_IPC_PARK 2     /* asleep whenever there is nothing to do */

/* How messages travel. */
#define LAPCE_IPC_TCP 1
#define LAPCE_IPC_SHM 2

/* Flags of lapce_ipc_client_options. */
#define LAPCE_IPC_NO_SHM_UPGRADE 1u     /* a TCP connection to this machine stays TCP */
#define LAPCE_IPC_NO_RECONNECT 2u       /* a lost connection stays lost */
#define LAPCE_IPC_RECORD_ROUND_TRIPS 4u /* for lapce_ipc_client_latency */

/* 0 or NULL is the default of every field. */
typedef struct lapce_ipc_client_options {
    size_t size;
    uint64_t timeout_ms;         /* the longest that a function waits, if not told otherwise; default 30000 */
    uint64_t connect_timeout_ms; /* one attempt to connect; default 5000 */
    const void *auth_token;      /* copied */
    size_t auth_token_bytes;
    uint64_t max_unread_bytes; /* answers waiting to be collected, one alone may be longer; default 64 MiB */
    uint32_t idle;             /* LAPCE_IPC_ADAPTIVE, _SPIN or _PARK */
    uint32_t protocol_version; /* 2, the default, or 1 */
    uint32_t flags;
    uint32_t max_inflight;      /* requests in flight; submitting more waits; default 1024 */
    uint32_t max_message_bytes; /* the longest payload either way; default 10 MiB */
    uint32_t reconnect_timeout_ms; /* how long a function that may wait goes on trying to reach a server that is gone;
                                      timeout_ms bounds it too, and is the default. An attempt that has begun may still
                                      take connect_timeout_ms; with 1 there are one or two */
} lapce_ipc_client_options;

#define LAPCE_IPC_CLIENT_OPTIONS_INIT \
    { sizeof(lapce_ipc_client_options), 0, 0, NULL, 0, 0, 0, 0, 0, 0, 0, 0 }

/* Connects to "HOST:PORT", "shm:" or "shm:INSTANCE". Waits for at most connect_timeout_ms, and
 * for what the system takes to look up HOST. options may be NULL. On success *client is a handle to be
 * closed with lapce_ipc_close, else NULL.
 *
 * A lost connection is made anew by the next function that sends (unless LAPCE_IPC_NO_RECONNECT). What
 * was not sent is then sent; what may have been carried out fails with -ECONNRESET. While the server is
 * gone, lapce_ipc_submit, lapce_ipc_submit_part and lapce_ipc_send make one attempt (connect_timeout_ms at
 * most) and do not wait: they fail with that attempt's code, or with -ENOTCONN in the pause of at most 80 ms
 * after it. The others that send try again and again until timeout_ms or reconnect_timeout_ms. */
int lapce_ipc_connect(const char *address, const lapce_ipc_client_options *options,
                      lapce_ipc_client **client);

/* Ends the connection and the handle; requests in flight are forgotten, and memory of lapce_ipc_reserve is
 * gone. Does not wait. NULL is fine. A client of a pool: see lapce_ipc_pool_put. */
int lapce_ipc_close(lapce_ipc_client *client);

/* Sends a request and waits for its answer, which replaces what is in *answer. An answer that is a
 * stream comes joined. On failure the buffer is empty or as it was, and still the caller's. */
int lapce_ipc_call(lapce_ipc_client *client, uint16_t msg_type, const void *payload,
                   size_t payload_bytes, lapce_ipc_buffer *answer);

/* The same with a time of its own in place of the client's timeout_ms. */
int lapce_ipc_call_within(lapce_ipc_client *client, uint64_t timeout_ms, uint16_t msg_type,
                          const void *payload, size_t payload_bytes, lapce_ipc_buffer *answer);

/* lapce_ipc_call for a request that does no harm when it is carried out twice: if the connection is lost
 * before the answer is here, it is sent again, until the timeout. A server that is being stopped may answer
 * LAPCE_IPC_SHUTTING_DOWN, at once: pause before calling again. */
int lapce_ipc_call_idempotent(lapce_ipc_client *client, uint16_t msg_type, const void *payload,
                              size_t payload_bytes, lapce_ipc_buffer *answer);

/* Sends a message that gets no answer. Waits only while the system takes no more, for timeout_ms at most,
 * and not for a server that is gone; whether it arrives is not known. */
int lapce_ipc_send(lapce_ipc_client *client, uint16_t msg_type, const void *payload,
                   size_t payload_bytes);

/* One heartbeat there and back; *took_ns (NULL is fine) becomes the nanoseconds that it took. */
int lapce_ipc_ping(lapce_ipc_client *client, uint64_t *took_ns);

/* Flags of lapce_ipc_submit. */
#define LAPCE_IPC_PRIORITY 1u /* handled before others that wait */
#define LAPCE_IPC_MORE 2u     /* lapce_ipc_submit_part continues this request */

/* Queues a request; *id becomes its id. It is sent by lapce_ipc_flush, or when an answer is polled or
 * waited for, or when much is queued. Waits only if max_inflight requests are in flight, or much is queued
 * that the server does not read, and then for timeout_ms: after that, -EAGAIN, and nothing was queued.
 * -ETIMEDOUT if it was queued, and part of it perhaps sent, but the server did not read on in time: then it is
 * forgotten, as by lapce_ipc_cancel. A payload above 32 KiB is sent here, so it may wait for timeout_ms.
 * -EINVAL for a message type that is not LAPCE_IPC_HEARTBEAT, LAPCE_IPC_ECHO or the application's. */
int lapce_ipc_submit(lapce_ipc_client *client, uint32_t flags, uint16_t msg_type,
                     const void *payload, size_t payload_bytes, uint64_t *id);

/* Queues the next part of a request submitted with LAPCE_IPC_MORE; without that flag, the last. */
int lapce_ipc_submit_part(lapce_ipc_client *client, uint32_t flags, uint64_t id, uint16_t msg_type,
                          const void *payload, size_t payload_bytes);

/* Sends what is queued. Waits while the system takes no more, or the server is gone. */
int lapce_ipc_flush(lapce_ipc_client *client);

/* Memory in which the program makes a request's payload, instead of making it elsewhere and having it
 * copied: *data becomes the address, a multiple of 32, of *capacity bytes (NULL is fine), at least
 * length. Over shared memory that is the place from which the server reads, if the message fits one
 * record (32,736 bytes) and there is room; else it is memory of the library, and sent as
 * lapce_ipc_submit does. What the memory holds at first is nobody's: write all that is committed.
 *
 * Sends what is queued as far as that goes without waiting, for the request comes after it. Waits only
 * if max_inflight requests are in flight, or to replace a lost connection. -EMSGSIZE if length is more
 * than max_message_bytes.
 *
 * The memory is the program's, for reading and writing by any of its threads, until lapce_ipc_commit,
 * lapce_ipc_abort or lapce_ipc_close; it stays good if the connection is lost meanwhile. Do not touch
 * it afterwards: it is part of later messages, or unmapped. The server may see, and could change, what
 * is in it before it is committed.
 *
 * There is one reservation at a time; while it is open, any function but these three on this client
 * returns -EBUSY. lapce_ipc_close is allowed. */
int lapce_ipc_reserve(lapce_ipc_client *client, uint16_t msg_type, size_t length, void **data,
                      size_t *capacity);

/* Sends the first length bytes of the reserved memory as a request; *id becomes its id, as that of
 * lapce_ipc_submit, and the answer is had in the same ways. Made in shared memory, it is on its way at
 * once and nothing is waited for; else it is queued as by lapce_ipc_submit. If the connection was lost
 * meanwhile, a new one is made and the request goes over that. The bytes must not change while this
 * runs.
 *
 * -EINVAL if nothing is reserved, or less than length, and -EFAULT if id cannot be: then a reservation
 * stays open. After anything else it has ended, sent or not. */
int lapce_ipc_commit(lapce_ipc_client *client, size_t length, uint64_t *id);

/* Ends the reservation with nothing sent. -EINVAL if there is none. Does not wait. */
int lapce_ipc_abort(lapce_ipc_client *client);

/* Tells the server that the answer to this request is no longer wanted, and forgets it. Whether it is
 * carried out is not known. An id that is not in flight is fine. Does not wait. */
int lapce_ipc_cancel(lapce_ipc_client *client, uint64_t id);

/* ------------------------------------------------------------- clients: answers to what was submitted */

/* One answer, or one part of an answer that is a stream. It begins as LAPCE_IPC_ANSWER_INIT and may be
 * used again and again; in the end lapce_ipc_buffer_free(&answer.payload). */
typedef struct lapce_ipc_answer {
    size_t size;
    uint64_t id;              /* as lapce_ipc_submit gave it */
    lapce_ipc_buffer payload; /* if status is not 0, the error's text, with a 0 after its end */
    int status;               /* 0, or how this request failed */
    uint16_t msg_type;
    uint8_t last; /* 0: more parts follow */
    uint8_t reserved;
} lapce_ipc_answer;

#define LAPCE_IPC_ANSWER_INIT { sizeof(lapce_ipc_answer), 0, LAPCE_IPC_BUFFER_INIT, 0, 0, 0, 0 }

/* The next answer that is here, to whichever request; -EAGAIN if none is. Sends what is queued as far
 * as that goes without waiting. Does not wait, but to replace a lost connection over which something
 * is left to send, and then for timeout_ms: an event loop that cannot stand still that long sets
 * reconnect_timeout_ms and connect_timeout_ms, or LAPCE_IPC_NO_RECONNECT and connects anew by itself. */
int lapce_ipc_poll(lapce_ipc_client *client, lapce_ipc_answer *answer);

/* The same, but waits for the next answer. -EINVAL if no request is in flight. */
int lapce_ipc_wait_any(lapce_ipc_client *client, lapce_ipc_answer *answer);

/* Waits for the whole answer to one request; others are kept for later. An error of the request is the
 * function's. -EINVAL if it is not in flight, because its answer was collected, say. */
int lapce_ipc_wait(lapce_ipc_client *client, uint64_t id, lapce_ipc_buffer *answer);

/* Waits for the next part of the answer to one request: the way to read a stream as it comes. The one
 * with last set ends it. To end it earlier, lapce_ipc_cancel. */
int lapce_ipc_wait_part(lapce_ipc_client *client, uint64_t id, lapce_ipc_answer *answer);

/* An answer in the client's receive buffer, for as long as the sink runs. */
typedef struct lapce_ipc_answer_view {
    size_t size;
    uint64_t id;
    const void *payload; /* if status is not 0, the error's text (no 0 after its end) */
    size_t payload_bytes;
    int status;
    uint16_t msg_type;
    uint8_t last;
    uint8_t reserved;
} lapce_ipc_answer_view;

/* Gets answers from lapce_ipc_drain. It must return (no longjmp, no C++ exception) and must not use the
 * client (-EBUSY). */
typedef void (*lapce_ipc_sink)(void *context, const lapce_ipc_answer_view *answer);

/* Flag of lapce_ipc_drain. */
#define LAPCE_IPC_WAIT 1u /* wait until there is at least one */

/* Gives all answers that are here to sink, on this thread, without copying or allocating; *count (NULL
 * is fine) becomes how many. */
int lapce_ipc_drain(lapce_ipc_client *client, uint32_t flags, lapce_ipc_sink sink, void *context,
                    size_t *count);

/* A descriptor for poll, epoll, libuv and the like: it is readable whenever lapce_ipc_poll has something
 * to do. Then call lapce_ipc_poll (or _drain) until it returns -EAGAIN (or *count is 0); the same once
 * before first waiting for it. Now and then it is readable for nothing. It stays the same over lost
 * connections, belongs to the client, and is closed by lapce_ipc_close; do not read, write or close it.
 *
 * A client that never asks for it pays nothing for it. For one that is connected through shared
 * memory, where no system call tells of an answer, a thread of the library sleeps in the client's
 * place and makes it readable: an answer takes two wake-ups then. Who cannot wait so long spins on
 * lapce_ipc_poll without a descriptor. */
int lapce_ipc_descriptor(lapce_ipc_client *client, int *descriptor);

/* -------------------------------------------------------------------------- clients: statistics */

typedef struct lapce_ipc_client_stats_t {
    size_t size;
    uint64_t sent;       /* requests and one-way messages queued */
    uint64_t received;   /* requests answered */
    uint64_t reconnects; /* connections made after the first */
    uint64_t in_flight;  /* requests whose answers have not come */
    uint32_t transport;  /* LAPCE_IPC_TCP or LAPCE_IPC_SHM */
    uint32_t connected;  /* 1 if the connection is up, as far as is known without asking the server */
} lapce_ipc_client_stats_t;

#define LAPCE_IPC_CLIENT_STATS_INIT { sizeof(lapce_ipc_client_stats_t), 0, 0, 0, 0, 0, 0 }

int lapce_ipc_client_stats(lapce_ipc_client *client, lapce_ipc_client_stats_t *stats);

/* *bytes becomes the longest payload that the server accepts, as it said when the connection was made.
 * -ENODATA if it was not asked: with LAPCE_IPC_NO_SHM_UPGRADE and no token, and in version 1, a connection
 * begins without a handshake. */
int lapce_ipc_client_peer_max_message(lapce_ipc_client *client, uint32_t *bytes);

/* The round trip that this share of the requests (0.5, 0.99) did not exceed, in nanoseconds. Needs
 * LAPCE_IPC_RECORD_ROUND_TRIPS; -ENODATA without it or before the first answer. */
int lapce_ipc_client_latency(lapce_ipc_client *client, double quantile, uint64_t *ns);

/* --------------------------------------------------------------------------------------- pools */

/* Connections to one server that threads share: each call takes one that is free, the one used last, and
 * leaves it to the next. A thread of the library checks idle ones, and tells the server how many were reused
 * (its metrics show that). */
typedef struct lapce_ipc_pool lapce_ipc_pool;

/* 0 or NULL is the default of every field. */
typedef struct lapce_ipc_pool_options {
    size_t size;
    const lapce_ipc_client_options *client; /* of each connection; copied */
    uint64_t timeout_ms;        /* the longest that a function waits for a connection; default 5000 */
    uint64_t check_interval_ms; /* between checks of idle connections, 10 at least; default 30000 */
    uint64_t idle_timeout_ms;   /* how long one may be idle that need not be kept; default 60000 */
    double reuse_threshold;     /* with a smaller share of reused ones, more are kept; up to 1, default 0.95 */
    uint32_t max_connections;   /* 1 to 65536; default 100 */
    uint32_t reserved;          /* 0 */
} lapce_ipc_pool_options;

#define LAPCE_IPC_POOL_OPTIONS_INIT { sizeof(lapce_ipc_pool_options), NULL, 0, 0, 0, 0, 0, 0 }

/* Prepares a pool for an address as that of lapce_ipc_connect. Makes no connection and does not wait: the
 * server need not be there yet. On success *pool is a handle to be closed with lapce_ipc_pool_close, else
 * NULL. */
int lapce_ipc_pool_open(const char *address, const lapce_ipc_pool_options *options, lapce_ipc_pool **pool);

/* lapce_ipc_call over a connection of the pool. Waits for a connection as lapce_ipc_pool_get does, then for
 * the answer for at most the client options' timeout_ms. Threads may call at the same time, each with an
 * answer of its own; those that wait for a connection get one in their order. */
int lapce_ipc_pool_call(lapce_ipc_pool *pool, uint16_t msg_type, const void *payload, size_t payload_bytes,
                        lapce_ipc_buffer *answer);

/* The same with one time for both, in place of the two. */
int lapce_ipc_pool_call_within(lapce_ipc_pool *pool, uint64_t timeout_ms, uint16_t msg_type,
                               const void *payload, size_t payload_bytes, lapce_ipc_buffer *answer);

/* Takes a connection out of the pool, for what takes more than one call: *client is a client like any other
 * (for one thread at a time, whichever) until it is given back with lapce_ipc_pool_put, which must happen;
 * else NULL. Its statistics go on from those of earlier users.
 *
 * Waits for at most timeout_ms if all are in use: then -EAGAIN. Makes one if none is idle and there may be
 * more, in one attempt whose error it returns. So while the server is gone it fails at once, -ECONNREFUSED
 * say: connections whose end was seen are closed and not given to anybody. One that was used within the last
 * millisecond is not looked at. If that is lost, or one in use, it is a client's lost connection: what may
 * have been carried out fails with -ECONNRESET, what was not sent waits for the server (-EPIPE with
 * LAPCE_IPC_NO_RECONNECT). */
int lapce_ipc_pool_get(lapce_ipc_pool *pool, lapce_ipc_client **client);

/* Gives the connection back and ends the handle. Whoever is next sees nothing of this user: requests in
 * flight and answers are forgotten, memory of lapce_ipc_reserve is gone, the descriptor is closed. A broken
 * connection is closed instead, and so is one whose pool is closed. -EINVAL if the client is not of a pool,
 * -EBUSY if it is in use; NULL is fine. Does not wait.
 *
 * lapce_ipc_close instead closes the connection: the pool makes another when it needs one. */
int lapce_ipc_pool_put(lapce_ipc_client *client);

typedef struct lapce_ipc_pool_stats_t {
    size_t size;
    uint64_t acquired;       /* connections handed out, for calls too */
    uint64_t reused;         /* those that were not newly made */
    uint64_t created;        /* connections made */
    uint64_t reconnected;    /* lost in use and made anew there */
    uint64_t broken;         /* found broken, or closed by lapce_ipc_close */
    uint64_t expired;        /* closed because they were idle for long */
    uint64_t exhausted;      /* waits for a connection that ended without one */
    uint64_t connect_failed; /* attempts to make one that failed */
    uint64_t checks;         /* of idle connections, and reports to the server */
    uint64_t checks_failed;  /* those that found a broken connection */
    uint32_t max_connections;
    uint32_t open;      /* connections that there are, those being made included */
    uint32_t idle;      /* those of them that nobody uses */
    uint32_t keep_idle; /* how many idle ones are kept for good */
    uint32_t waiting;   /* threads that wait for a connection */
    uint32_t reserved;
} lapce_ipc_pool_stats_t;

#define LAPCE_IPC_POOL_STATS_INIT \
    { sizeof(lapce_ipc_pool_stats_t), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

int lapce_ipc_pool_stats(lapce_ipc_pool *pool, lapce_ipc_pool_stats_t *stats);

/* Ends the handle and closes idle connections after a last report to the server. For that, and for a check
 * that is under way, it waits, 3 s at most. Clients that were taken out stay good until they are given back.
 * Calls of other threads go on undisturbed: then the last to end does all this, and this returns at once.
 * NULL is fine. */
int lapce_ipc_pool_close(lapce_ipc_pool *pool);

/* ------------------------------------------------------------------------------------- servers */

typedef struct lapce_ipc_server lapce_ipc_server;

/* Flags of lapce_ipc_server_options. */
#define LAPCE_IPC_LEGACY 1u /* serve version 1 connections too */
#define LAPCE_IPC_NO_PIN 2u /* do not keep each worker on a CPU of its own, as is done where idle ones spin.
                              * A thread that a handler starts would inherit that CPU. */

/* 0 or NULL is the default of every field; bind, shm or both must be set. Times are a day at most. A limit
 * that cannot be kept is refused by lapce_ipc_server_start. */
typedef struct lapce_ipc_server_options {
    size_t size;
    const char *bind;       /* "HOST:PORT"; port 0 lets the system choose one */
    const char *shm;        /* the instance's name, "" for the default one */
    const void *auth_token; /* 1 to 65384 bytes that every client must show; copied */
    size_t auth_token_bytes;
    uint64_t drain_ms;           /* how long stopping waits for answers in flight; default 5000 */
    uint64_t max_buffered_bytes; /* messages on their way; default 64 MiB */
    uint64_t send_stall_ms;      /* how long a client may leave answers unread; default 30000 */
    uint64_t frame_timeout_ms;   /* how long a client may stop inside a frame; default 10000 */
    uint32_t idle;               /* LAPCE_IPC_ADAPTIVE, _SPIN or _PARK */
    uint32_t flags;
    uint32_t workers;           /* threads, 1 to 16; default half of the CPUs */
    uint32_t max_message_bytes; /* default 10 MiB */
    uint32_t max_connections;   /* default 1024 */
    uint32_t max_inflight_per_connection; /* detached requests; default 1024 */
} lapce_ipc_server_options;

#define LAPCE_IPC_SERVER_OPTIONS_INIT \
    { sizeof(lapce_ipc_server_options), NULL, NULL, NULL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/* The right and duty to answer one request. */
typedef struct lapce_ipc_responder lapce_ipc_responder;

/* Flags of lapce_ipc_request. */
#define LAPCE_IPC_EXPECTS_ANSWER 1u /* clear: a one-way message; answers to it go nowhere */
#define LAPCE_IPC_PART 2u           /* more parts of this request follow */

/* A request, for as long as its handler runs. */
typedef struct lapce_ipc_request {
    size_t size;
    uint64_t msg_id;
    const void *payload; /* nobody changes it meanwhile */
    size_t payload_bytes;
    uint32_t transport; /* LAPCE_IPC_TCP or LAPCE_IPC_SHM */
    uint32_t flags;
    uint16_t msg_type;
    uint16_t reserved[3];
} lapce_ipc_request;

/* Serves a message type. It runs on one of the server's threads, several at a time if there are several
 * workers, with 1 MiB of stack. It must not block (take long work to another thread with
 * lapce_ipc_detach), and must return: no longjmp, no C++ exception. Returning without having answered or
 * detached answers LAPCE_IPC_HANDLER_FAILED (unless the request has the flag LAPCE_IPC_PART). The
 * responder ends when the handler returns. */
typedef void (*lapce_ipc_handler)(void *context, const lapce_ipc_request *request,
                                  lapce_ipc_responder *responder);

/* Prepares a server. On success *server is a handle to be ended with lapce_ipc_server_stop, else NULL. */
int lapce_ipc_server_new(const lapce_ipc_server_options *options, lapce_ipc_server **server);

/* Registers or replaces the handler of a message type, before lapce_ipc_server_start. context is given to
 * the handler as it is, and must live until lapce_ipc_server_stop has returned. */
int lapce_ipc_server_handle(lapce_ipc_server *server, uint16_t msg_type, lapce_ipc_handler handler,
                            void *context);

/* Starts the server's threads. When it returns, clients can connect. After a failure the handle is only
 * good for lapce_ipc_server_stop. Handlers may run before it returns; what they ask of the handle gets
 * -EBUSY until then, but for lapce_ipc_server_begin_stop, which is heeded. */
int lapce_ipc_server_start(lapce_ipc_server *server);

/* Writes "HOST:PORT" as the server listens on it, and a 0 after its end. -ENOBUFS if it is longer than
 * capacity: 56 bytes are always enough. -ENOTCONN if it does not listen on TCP. */
int lapce_ipc_server_address(lapce_ipc_server *server, char *text, size_t capacity);

/* Changes how idle workers wait: LAPCE_IPC_ADAPTIVE, _SPIN or _PARK, from their next wait on. Also from a handler. */
int lapce_ipc_server_set_idle(lapce_ipc_server *server, uint32_t idle);

/* Begins (1) or ends (0) to serve version 1 connections. Those that are open stay as they are until their
 * next frame. Also from a handler. */
int lapce_ipc_server_set_legacy(lapce_ipc_server *server, int enabled);

/* Begins to stop and returns at once; also from a handler. Nobody new gets in from then on, over TCP or
 * shared memory. lapce_ipc_server_stop is still needed. */
int lapce_ipc_server_begin_stop(lapce_ipc_server *server);

/* Waits at most so long for one of the server's threads to fail, which only a bug of this library makes it
 * do: 0 if one has, -ETIMEDOUT if none. The server then stops by itself, as by
 * lapce_ipc_server_begin_stop. */
int lapce_ipc_server_wait_for_failure(lapce_ipc_server *server, uint32_t timeout_ms);

/* Stops and ends the handle: accepts nothing new, delivers answers in flight for at most drain_ms, and
 * returns when no handler runs or will run. -EDEADLK in a handler. NULL is fine. Responders that are still
 * detached stay valid, and get -EPIPE. */
int lapce_ipc_server_stop(lapce_ipc_server *server);

/* ----------------------------------------------------------------------------------- answering */

/* These take a handler's own responder, on the handler's thread, or a detached one, on any thread. Those
 * of a handler do not wait. For detached ones, -EPIPE says that the answer was dropped, as the requester or the
 * server is gone, or the request was cancelled; lapce_ipc_reply and _reply_error have ended the responder all
 * the same. */

/* Answers, and ends the responder. A payload above max_message_bytes becomes HANDLER_FAILED; so does, in a
 * handler, a detached one's answer to who is too far behind in reading, as at lapce_ipc_reply_part. */
int lapce_ipc_reply(lapce_ipc_responder *responder, const void *payload, size_t payload_bytes);

/* Answers with an error, 1 to 14 of lapce_ipc_code, and ends the responder. NULL for the text is fine. */
int lapce_ipc_reply_error(lapce_ipc_responder *responder, int code, const char *text);

/* Sends one part of an answer that is a stream; lapce_ipc_reply sends the last and ends it. A handler's
 * own responder keeps the parts until the handler returns, and refuses one above max_message_bytes
 * (-EMSGSIZE): a long stream belongs to a detached one, which waits while the requester is far behind in
 * reading: its thread had better hold no lock then that handlers take. In a handler none waits: there a
 * detached one whose requester is more than 1 MiB behind gets -EPIPE once max_buffered_bytes are buffered over
 * all connections, half of that answers, and the requester HANDLER_FAILED. After -EPIPE the responder is still
 * to be ended with lapce_ipc_reply or _reply_error. */
int lapce_ipc_reply_part(lapce_ipc_responder *responder, const void *payload, size_t payload_bytes);

/* Takes the duty to answer away from the handler: *later is a responder for any one thread at a time,
 * until it is ended with lapce_ipc_reply or lapce_ipc_reply_error, which must happen. The handler's own
 * has ended. The request's payload does not outlive the handler: copy what is needed. */
int lapce_ipc_detach(lapce_ipc_responder *responder, lapce_ipc_responder **later);

/* 1 if the requester of a detached responder can no longer be reached, or has cancelled the request, so that
 * the work may as well stop; else 0, as far as is known. The responder is still to be ended. */
int lapce_ipc_is_gone(lapce_ipc_responder *responder);

/* Writes the requester's address, or "shm", and a 0 after its end; as lapce_ipc_server_address. Only in
 * the handler, with its own responder. */
int lapce_ipc_peer(lapce_ipc_responder *responder, char *text, size_t capacity);

/* -------------------------------------------------------------------------- servers: statistics */

typedef struct lapce_ipc_transport_stats {
    uint64_t requests;          /* taken, answered with an error or not */
    uint64_t connections;       /* open now */
    uint64_t connections_total; /* ever opened */
    uint64_t bytes_in;          /* headers included */
    uint64_t bytes_out;
} lapce_ipc_transport_stats;

typedef struct lapce_ipc_server_stats_t {
    size_t size;
    lapce_ipc_transport_stats tcp;
    lapce_ipc_transport_stats shm;
    uint64_t errors;          /* errors sent */
    uint64_t legacy_requests; /* requests in version 1 */
} lapce_ipc_server_stats_t;

#define LAPCE_IPC_SERVER_STATS_INIT \
    { sizeof(lapce_ipc_server_stats_t), { 0, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0 }, 0, 0 }

int lapce_ipc_server_stats(lapce_ipc_server *server, lapce_ipc_server_stats_t *stats);

/* The time from a request's arrival to its answer handed over that this share of the requests did not
 * exceed, in nanoseconds; transport is LAPCE_IPC_TCP or LAPCE_IPC_SHM. -ENODATA before the first. */
int lapce_ipc_server_latency(lapce_ipc_server *server, uint32_t transport, double quantile,
                             uint64_t *ns);

#ifdef __cplusplus
}
#endif

#endif
