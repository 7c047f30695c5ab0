/* CRC-32C bit by bit, and a frame of version 2, for peers that are written by hand. */
#ifndef CRC_H
#define CRC_H

#include <stdint.h>
#include <string.h>

static uint32_t crc32c(const unsigned char *bytes, size_t length) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return crc ^ 0xFFFFFFFFu;
}

static void put(unsigned char *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to[i] = (unsigned char)(value >> (8 * i));
}

/* Writes a frame and returns its length; out has 24 bytes more than the payload. */
static size_t frame(unsigned char *out, unsigned flags, uint16_t msg_type, uint64_t id, const void *payload,
                    uint32_t length) {
    put(out, 0x4C504149u, 4);
    out[4] = 2;
    out[5] = (unsigned char)flags;
    put(out + 6, msg_type, 2);
    put(out + 8, length, 4);
    put(out + 12, id, 8);
    put(out + 20, 0, 4);
    if (length > 0) memcpy(out + 24, payload, length);
    put(out + 20, crc32c(out, 24 + length), 4);
    return 24 + length;
}

#endif
