/* The layout of every struct, as the library has it, and the header as C and as C++. */
#include "check.h"

#define SIZE(type, bytes) CHECK(sizeof(type) == (bytes))
#define PLACE(type, field, offset) CHECK(offsetof(type, field) == (offset))

int main(void) {
    lapce_ipc_buffer buffer = LAPCE_IPC_BUFFER_INIT;
    lapce_ipc_answer answer = LAPCE_IPC_ANSWER_INIT;
    lapce_ipc_client_options client_options = LAPCE_IPC_CLIENT_OPTIONS_INIT;
    lapce_ipc_server_options server_options = LAPCE_IPC_SERVER_OPTIONS_INIT;
    lapce_ipc_client_stats_t client_stats = LAPCE_IPC_CLIENT_STATS_INIT;
    lapce_ipc_pool_options pool_options = LAPCE_IPC_POOL_OPTIONS_INIT;
    lapce_ipc_pool_stats_t pool_stats = LAPCE_IPC_POOL_STATS_INIT;
    lapce_ipc_server_stats_t server_stats = LAPCE_IPC_SERVER_STATS_INIT;

    CHECK(lapce_ipc_abi_version() == LAPCE_IPC_ABI_VERSION);
    CHECK(strchr(lapce_ipc_version(), '.') != NULL);
    CHECK(buffer.data == NULL && buffer.length == 0 && buffer.capacity == 0);
    SIZE(lapce_ipc_buffer, 24);
    SIZE(lapce_ipc_answer, 48);
    CHECK(answer.size == 48);
    PLACE(lapce_ipc_answer, payload, 16);
    PLACE(lapce_ipc_answer, status, 40);
    PLACE(lapce_ipc_answer, last, 46);
    SIZE(lapce_ipc_answer_view, 40);
    PLACE(lapce_ipc_answer_view, payload_bytes, 24);
    PLACE(lapce_ipc_answer_view, last, 38);
    SIZE(lapce_ipc_client_options, 72);
    CHECK(client_options.size == 72);
    PLACE(lapce_ipc_client_options, auth_token, 24);
    PLACE(lapce_ipc_client_options, max_unread_bytes, 40);
    PLACE(lapce_ipc_client_options, idle, 48);
    PLACE(lapce_ipc_client_options, max_message_bytes, 64);
    SIZE(lapce_ipc_server_options, 96);
    CHECK(server_options.size == 96);
    PLACE(lapce_ipc_server_options, auth_token_bytes, 32);
    PLACE(lapce_ipc_server_options, frame_timeout_ms, 64);
    PLACE(lapce_ipc_server_options, idle, 72);
    PLACE(lapce_ipc_server_options, max_inflight_per_connection, 92);
    SIZE(lapce_ipc_client_stats_t, 48);
    CHECK(client_stats.size == 48);
    PLACE(lapce_ipc_client_stats_t, transport, 40);
    SIZE(lapce_ipc_pool_options, 56);
    CHECK(pool_options.size == 56);
    PLACE(lapce_ipc_pool_options, client, 8);
    PLACE(lapce_ipc_pool_options, reuse_threshold, 40);
    PLACE(lapce_ipc_pool_options, max_connections, 48);
    SIZE(lapce_ipc_pool_stats_t, 112);
    CHECK(pool_stats.size == 112);
    PLACE(lapce_ipc_pool_stats_t, checks_failed, 80);
    PLACE(lapce_ipc_pool_stats_t, waiting, 104);
    SIZE(lapce_ipc_server_stats_t, 104);
    CHECK(server_stats.size == 104);
    PLACE(lapce_ipc_server_stats_t, shm, 48);
    PLACE(lapce_ipc_server_stats_t, errors, 88);
    SIZE(lapce_ipc_request, 48);
    PLACE(lapce_ipc_request, transport, 32);
    PLACE(lapce_ipc_request, msg_type, 40);

    for (int code = 0; code <= 14; code++) {
        const char *text = lapce_ipc_strerror(code);
        CHECK(text[0] != 0);
        for (int other = 0; other < code; other++) CHECK(strcmp(text, lapce_ipc_strerror(other)) != 0);
    }
    CHECK(strncmp(lapce_ipc_strerror(LAPCE_IPC_CRC_MISMATCH), "CRC_MISMATCH", 12) == 0);
    CHECK(strcmp(lapce_ipc_strerror(-ENOENT), strerror(ENOENT)) == 0);
    CHECK(strstr(lapce_ipc_strerror(LAPCE_IPC_UNKNOWN_CODE), "does not know") != NULL);
    CHECK(strcmp(lapce_ipc_strerror(15), "unknown error") == 0);
    CHECK(strcmp(lapce_ipc_strerror(-2147483647 - 1), "unknown error") == 0);
    CHECK(lapce_ipc_strerror(-99999)[0] != 0);
    CHECK(lapce_ipc_last_error()[0] == 0);
    return 0;
}
