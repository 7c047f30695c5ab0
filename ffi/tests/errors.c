/* Every error of a client, from servers that misbehave as it takes. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "crc.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A server by hand: accepts one connection, receives one request, sends `bytes`, and waits for the
 * client to close if `stay`. */
struct peer {
    int listener;
    pthread_t thread;
    char address[64];
    unsigned char bytes[256];
    size_t length;
    int stay;
};

static void *serve(void *argument) {
    struct peer *peer = argument;
    unsigned char received[4096];
    int connection = accept(peer->listener, NULL, NULL);

    CHECK(connection >= 0);
    close(peer->listener); /* there will be no second one */
    CHECK(recv(connection, received, sizeof received, 0) >= 24);
    if (peer->length > 0) CHECK(send(connection, peer->bytes, peer->length, MSG_NOSIGNAL) >= 0);
    while (peer->stay && recv(connection, received, sizeof received, 0) > 0) {
    }
    close(connection);
    return NULL;
}

static void begin(struct peer *peer) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;

    memset(&address, 0, sizeof address);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    peer->listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(peer->listener >= 0);
    CHECK(bind(peer->listener, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(listen(peer->listener, 1) == 0);
    CHECK(getsockname(peer->listener, (struct sockaddr *)&address, &length) == 0);
    snprintf(peer->address, sizeof peer->address, "127.0.0.1:%d", ntohs(address.sin_port));
    CHECK(pthread_create(&peer->thread, NULL, serve, peer) == 0);
}

static lapce_ipc_client *connected(const char *address, uint64_t timeout_ms) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client *client;

    options.flags = LAPCE_IPC_NO_RECONNECT | LAPCE_IPC_NO_SHM_UPGRADE;
    options.timeout_ms = timeout_ms;
    OK(lapce_ipc_connect(address, &options, &client));
    return client;
}

/* One call to such a server, and what comes of it. */
static void against(struct peer *peer, int code, const char *words) {
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;

    begin(peer);
    client = connected(peer->address, code == -ETIMEDOUT ? 50 : 20000);
    FAILS(code, words, lapce_ipc_call(client, 0x0100, "x", 1, &answer));
    CHECK(answer.length == 0);
    if (code == -ECONNRESET) {
        FAILS(-EPIPE, "not sent", lapce_ipc_call(client, 0x0100, "x", 1, &answer));
    }
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
    CHECK(pthread_join(peer->thread, NULL) == 0);
}

/* A call has a time of its own, which is not the client's. */
static void too_late(struct peer *peer) {
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;

    begin(peer);
    client = connected(peer->address, 20000);
    FAILS(-ETIMEDOUT, "50ms", lapce_ipc_call_within(client, 50, 0x0100, "x", 1, &answer));
    CHECK(answer.length == 0);
    OK(lapce_ipc_close(client));
    CHECK(pthread_join(peer->thread, NULL) == 0);
}

static void misbehaving_servers(void) {
    struct peer peer;
    static const unsigned char unknown[] = { 0xE7, 0x03, 'o', 'd', 'd' };

    memset(&peer, 0, sizeof peer);
    CHECK(crc32c((const unsigned char *)"123456789", 9) == 0xE3069283u);
    against(&peer, -ECONNRESET, "may or may not");
    peer.stay = 1;
    against(&peer, -ETIMEDOUT, "may or may not");
    too_late(&peer);
    memset(peer.bytes, 'x', 64);
    peer.length = 64;
    against(&peer, -EPROTO, "broke the protocol");
    peer.length = frame(peer.bytes, 0x20, 0x0100, 1, "x", 1);
    peer.bytes[24] ^= 1;
    against(&peer, -EPROTO, "CRC32 mismatch");
    peer.length = frame(peer.bytes, 0x20, 0x0004, 1, unknown, sizeof unknown);
    against(&peer, LAPCE_IPC_UNKNOWN_CODE, "odd");
    /* About the connection as a whole. */
    peer.length = frame(peer.bytes, 0, 0x0004, 0, "\x07\0no", 4);
    against(&peer, LAPCE_IPC_UNAUTHORIZED, "no");
}

/* A client that does not wait for a server that is gone, although it would for an answer. */
static void gone_for_good(void) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_buffer answer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_client *client;
    struct peer peer;
    time_t start;

    memset(&peer, 0, sizeof peer);
    begin(&peer);
    options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    options.timeout_ms = 60000;
    options.reconnect_timeout_ms = 1;
    OK(lapce_ipc_connect(peer.address, &options, &client));
    CODE(-ECONNRESET, lapce_ipc_call(client, 0x0100, "x", 1, &answer));
    CHECK(pthread_join(peer.thread, NULL) == 0);
    start = time(NULL);
    CODE(-ECONNREFUSED, lapce_ipc_call(client, 0x0100, "x", 1, &answer));
    CHECK(time(NULL) - start < 30);
    lapce_ipc_buffer_free(&answer);
    OK(lapce_ipc_close(client));
}

static void no_server(void) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client *client = (lapce_ipc_client *)&options;

    FAILS(-ECONNREFUSED, "lapce_ipc_server", lapce_ipc_connect("127.0.0.1:1", NULL, &client));
    CHECK(client == NULL);
    CODE(-ENOENT, lapce_ipc_connect("shm:no_such_instance_of_the_tests", NULL, &client));
    FAILS(-EINVAL, "port is missing", lapce_ipc_connect("127.0.0.1", NULL, &client));
    FAILS(-EINVAL, "UTF-8", lapce_ipc_connect("\xFF:1", NULL, &client));
    FAILS(-EFAULT, "address", lapce_ipc_connect(NULL, NULL, &client));
    FAILS(-EFAULT, "place", lapce_ipc_connect("127.0.0.1:1", NULL, NULL));
    FAILS(-EFAULT, "aligned",
          lapce_ipc_connect("127.0.0.1:1", NULL, (lapce_ipc_client **)(void *)((char *)&client + 1)));
}

static void wrong_options(void) {
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    struct {
        lapce_ipc_client_options known;
        uint64_t later;
    } newer = { LAPCE_IPC_CLIENT_OPTIONS_INIT, 0 };
    char place[sizeof options + 16];
    lapce_ipc_client *client;
    static char token[70000];
    const char *nowhere = "127.0.0.1:1";

    options.size = 0;
    FAILS(-EINVAL, "size", lapce_ipc_connect(nowhere, &options, &client));
    options.size = 1 << 20;
    FAILS(-EINVAL, "size", lapce_ipc_connect(nowhere, &options, &client));
    options.size = sizeof options;
    options.flags = 1u << 31;
    FAILS(-EINVAL, "flag", lapce_ipc_connect(nowhere, &options, &client));
    options.flags = 0;
    options.idle = 3;
    FAILS(-EINVAL, "waiting mode", lapce_ipc_connect(nowhere, &options, &client));
    options.idle = LAPCE_IPC_SPIN;
    options.protocol_version = 3;
    FAILS(-EINVAL, "version", lapce_ipc_connect(nowhere, &options, &client));
    options.protocol_version = 0;
    options.auth_token = token;
    options.auth_token_bytes = sizeof token;
    FAILS(-EINVAL, "65535", lapce_ipc_connect(nowhere, &options, &client));
    options.auth_token_bytes = 0;
    FAILS(-EINVAL, "empty", lapce_ipc_connect(nowhere, &options, &client));
    options.auth_token = NULL;
    options.auth_token_bytes = 32;
    FAILS(-EFAULT, "token", lapce_ipc_connect(nowhere, &options, &client));
    options.auth_token_bytes = 0;
    /* Too new: refused where it matters, taken where it does not. */
    newer.known.size = sizeof newer;
    CODE(-ECONNREFUSED, lapce_ipc_connect(nowhere, &newer.known, &client));
    newer.later = 1;
    FAILS(-E2BIG, "not know", lapce_ipc_connect(nowhere, &newer.known, &client));
    FAILS(-EFAULT, "aligned",
          lapce_ipc_connect(nowhere, (lapce_ipc_client_options *)(void *)(place + (((uintptr_t)place % 8) == 1 ? 1 : 9 - (uintptr_t)place % 8)), &client));
}

/* A server that finds no descriptors: for its socket, its rings, its segment. */
static void out_of_descriptors(void) {
    lapce_ipc_server_options options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    struct rlimit limit, few;
    lapce_ipc_server *server;
    char instance[32];
    int code, last = -1, first_free;

    snprintf(instance, sizeof instance, "ffi_few_%ld", (long)getpid());
    options.bind = "127.0.0.1:0";
    options.shm = instance;
    options.workers = 2;
    options.idle = IDLE;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    few = limit;
    first_free = dup(0);
    CHECK(first_free >= 0 && close(first_free) == 0);
    for (int more = 0; more < 16 && last != 0; more++) {
        OK(lapce_ipc_server_new(&options, &server));
        few.rlim_cur = (rlim_t)(first_free + more);
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        code = lapce_ipc_server_start(server);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        if (code != 0) {
            CODE(-EMFILE, code);
            CHECK(strstr(lapce_ipc_last_error(), "Too many open files") != NULL);
        }
        last = code;
        OK(lapce_ipc_server_stop(server));
    }
    CHECK(last == 0);
}

static void guarded(void *context, const lapce_ipc_request *request, lapce_ipc_responder *responder) {
    (void)context;
    lapce_ipc_reply(responder, request->payload, request->payload_bytes);
}

static void wrong_arguments(void) {
    lapce_ipc_server_options server_options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_client_options options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_client_stats_t stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_buffer buffer = LAPCE_IPC_BUFFER_INIT;
    struct rlimit limit, none;
    lapce_ipc_server *server;
    lapce_ipc_client *client;
    char address[64];
    static char large[5000];
    uint64_t id, longest, first, ns;
    int fd;

    server_options.bind = "127.0.0.1:0";
    server_options.workers = 1;
    server_options.idle = IDLE;
    server_options.max_message_bytes = 4096;
    server_options.auth_token = "secret";
    server_options.auth_token_bytes = 6;
    OK(lapce_ipc_server_new(&server_options, &server));
    OK(lapce_ipc_server_handle(server, 0x0100, guarded, NULL));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_server_address(server, address, sizeof address));

    options.flags = LAPCE_IPC_NO_SHM_UPGRADE;
    options.auth_token = "guess";
    options.auth_token_bytes = 5;
    CODE(LAPCE_IPC_UNAUTHORIZED, lapce_ipc_connect(address, &options, &client));
    options.auth_token = "secret";
    options.auth_token_bytes = 6;
    options.max_unread_bytes = 100;
    OK(lapce_ipc_connect(address, &options, &client));
    FAILS(-EMSGSIZE, "4096", lapce_ipc_call(client, 0x0100, large, sizeof large, &buffer));
    OK(lapce_ipc_call(client, 0x0100, large, 4096, &buffer));
    CHECK(buffer.length == 4096);

    /* Answers that nobody collects. One alone may be longer than the limit. */
    OK(lapce_ipc_submit(client, 0, 0x0100, large, 1000, &longest));
    OK(lapce_ipc_submit(client, 0, 0x0100, large, 1000, &first));
    OK(lapce_ipc_submit(client, 0, 0x0100, "x", 1, &id));
    OK(lapce_ipc_wait(client, id, &buffer));
    FAILS(-ENOBUFS, "not collected", lapce_ipc_wait(client, first, &buffer));
    OK(lapce_ipc_wait(client, longest, &buffer));
    CHECK(buffer.length == 1000);

    CODE(-EFAULT, lapce_ipc_call(client, 0x0100, NULL, 1, &buffer));
    CODE(-EFAULT, lapce_ipc_call(client, 0x0100, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_call(client, 0x0100, "x", 1, (lapce_ipc_buffer *)(void *)((char *)&answer + 4)));
    CODE(-EINVAL, lapce_ipc_call(client, 0x0100, "x", (size_t)-1, &buffer));
    CODE(-EFAULT, lapce_ipc_call_idempotent(client, 0x0100, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_call_within(client, 1000, 0x0100, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_send(client, 0x0100, NULL, 1));
    CODE(-EFAULT, lapce_ipc_submit(client, 0, 0x0100, "x", 1, NULL));
    CODE(-EFAULT, lapce_ipc_wait(client, 1, NULL));
    CODE(-EFAULT, lapce_ipc_poll(client, NULL));
    FAILS(-EAGAIN, "the answer is NULL", lapce_ipc_poll(client, &answer)); /* the text is still the last failure's */
    CODE(-EFAULT, lapce_ipc_wait_any(client, NULL));
    CODE(-EFAULT, lapce_ipc_wait_part(client, 1, NULL));
    CODE(-EFAULT, lapce_ipc_descriptor(client, NULL));
    CODE(-EFAULT, lapce_ipc_client_stats(client, NULL));
    answer.size = 4;
    FAILS(-EINVAL, "ANSWER_INIT", lapce_ipc_poll(client, &answer));
    stats.size = 4;
    FAILS(-EINVAL, "size", lapce_ipc_client_stats(client, &stats));
    FAILS(-ENODATA, "RECORD_ROUND_TRIPS", lapce_ipc_client_latency(client, 0.5, &ns));
    CODE(-EFAULT, lapce_ipc_client_latency(client, 0.5, NULL));
    CODE(-EINVAL, lapce_ipc_client_latency(client, -0.5, &ns));
    buffer.length = buffer.capacity + 1;
    FAILS(-EINVAL, "damaged", lapce_ipc_call(client, 0x0100, "x", 1, &buffer));
    FAILS(-EINVAL, "damaged", lapce_ipc_call_idempotent(client, 0x0100, "x", 1, &buffer));
    /* An answer is not lost because there was no place for it. */
    OK(lapce_ipc_submit(client, 0, 0x0100, "precious", 8, &id));
    FAILS(-EINVAL, "damaged", lapce_ipc_wait(client, id, &buffer));
    buffer.length = 0;
    OK(lapce_ipc_wait(client, id, &buffer));
    CHECK(buffer.length == 8 && memcmp(buffer.data, "precious", 8) == 0);
    answer.size = sizeof answer;
    answer.payload = buffer;
    for (int way = 0; way < 3; way++) {
        OK(lapce_ipc_submit(client, 0, 0x0100, "precious", 8, &id));
        OK(lapce_ipc_flush(client));
        answer.payload.length = answer.payload.capacity + 1;
        if (way == 0) FAILS(-EINVAL, "damaged", lapce_ipc_wait_any(client, &answer));
        if (way == 1) FAILS(-EINVAL, "damaged", lapce_ipc_wait_part(client, id, &answer));
        if (way == 2) FAILS(-EINVAL, "damaged", lapce_ipc_poll(client, &answer));
        answer.payload.length = 0;
        OK(lapce_ipc_wait_part(client, id, &answer));
        CHECK(answer.id == id && answer.payload.length == 8);
    }
    buffer = answer.payload;
    answer.payload = (lapce_ipc_buffer)LAPCE_IPC_BUFFER_INIT;

    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    none = limit;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CODE(-EMFILE, lapce_ipc_descriptor(client, &fd));
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    OK(lapce_ipc_descriptor(client, &fd));

    /* A client is no server, and the other way round. */
    CODE(-EBADF, lapce_ipc_ping((lapce_ipc_client *)server, NULL));
    CODE(-EBADF, lapce_ipc_server_stop((lapce_ipc_server *)client));
    CODE(-EBADF, lapce_ipc_ping((lapce_ipc_client *)&buffer, NULL));
    FAILS(-EFAULT, "handle", lapce_ipc_ping(NULL, NULL));
    FAILS(-EFAULT, "handle", lapce_ipc_flush(NULL));
    FAILS(-EFAULT, "handle", lapce_ipc_cancel(NULL, 1));
    FAILS(-EFAULT, "handle", lapce_ipc_server_start(NULL));
    FAILS(-EFAULT, "handle", lapce_ipc_is_gone(NULL) == -EFAULT ? -EFAULT : 0);

    /* The server ends; what is in flight is refused or lost, and a new server is found. */
    OK(lapce_ipc_server_stop(server));
    CODE(-EBADF, lapce_ipc_server_address(server, address, sizeof address));
    server_options.bind = address;
    OK(lapce_ipc_server_new(&server_options, &server));
    OK(lapce_ipc_server_handle(server, 0x0100, guarded, NULL));
    OK(lapce_ipc_server_start(server));
    OK(lapce_ipc_call_idempotent(client, 0x0100, "again", 5, &buffer));
    CHECK(buffer.length == 5);
    stats.size = sizeof stats;
    OK(lapce_ipc_client_stats(client, &stats));
    CHECK(stats.reconnects >= 1);
    /* The descriptor is the same and follows the new connection. */
    OK(lapce_ipc_submit(client, 0, 0x0100, "x", 1, &id));
    OK(lapce_ipc_flush(client));
    answer.size = sizeof answer;
    while (lapce_ipc_poll(client, &answer) == -EAGAIN) {
    }
    CHECK(answer.id == id && answer.status == 0);
    lapce_ipc_buffer_free(&answer.payload);
    lapce_ipc_buffer_free(&buffer);
    OK(lapce_ipc_close(client));
    OK(lapce_ipc_server_stop(server));
}

struct texts {
    char first[256];
};

static void *own_text(void *argument) {
    struct texts *texts = argument;
    CHECK(lapce_ipc_last_error()[0] == 0);
    CODE(-EFAULT, lapce_ipc_ping(NULL, NULL));
    snprintf(texts->first, sizeof texts->first, "%s", lapce_ipc_last_error());
    return NULL;
}

static void texts_per_thread(void) {
    lapce_ipc_client *client;
    struct texts texts;
    pthread_t thread;

    FAILS(-EINVAL, "port", lapce_ipc_connect("x", NULL, &client));
    CHECK(pthread_create(&thread, NULL, own_text, &texts) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strstr(texts.first, "handle") != NULL);
    CHECK(strstr(lapce_ipc_last_error(), "port") != NULL);
}

int main(void) {
    no_server();
    wrong_options();
    misbehaving_servers();
    gone_for_good();
    /* valgrind has descriptors of its own. */
    if (getenv("LAPCE_IPC_TEST_SPIN") == NULL) out_of_descriptors();
    wrong_arguments();
    texts_per_thread();
    return 0;
}
