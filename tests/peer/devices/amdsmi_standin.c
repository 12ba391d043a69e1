/* A stand-in for libamd_smi.so with the functions that the inventory asks for.
 *
 * What it tells is a text file named by AMDSMI_SCRIPT, read anew at every call:
 *
 *   init=!34
 *   card pci=3 total=8589934592 used=1 busy=40 celsius=61 watts=120 width=8 gfx=803 name=RX 580
 *
 * `pci` is the bus number. `key=!2` answers with that amdsmi_status_t; a key that is missing
 * answers NOT_SUPPORTED; `all=!31` is the answer of every call. `name` is the last key of a line.
 * stubs.h, made by the test, holds every other function that the package binds when it is imported.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stubs.h"

#define LINE 512
#define NOT_SUPPORTED 2
#define NOT_FOUND 31

typedef void *handle_t;
typedef struct { uint32_t gfx, umc, mm, reserved[13]; } usage_t;
typedef struct {
    uint64_t socket;
    uint32_t current, average;
    uint64_t voltages[3];
    uint32_t limit, padding;
    uint64_t reserved[18];
} power_t;
typedef struct {
    uint64_t fixed[12];
    uint16_t width;
    uint8_t rest[400];
} pcie_t;
typedef struct {
    char name[256];
    uint32_t vendor;
    char vendor_name[256];
    uint32_t subvendor;
    uint64_t device;
    uint32_t revision;
    char serial[256];
    uint32_t oam, units, padding;
    uint64_t target;
    uint32_t subsystem, reserved[21];
} __attribute__((packed)) asic_t;

static int find(const char *word, int number, char *line) {
    const char *path = getenv("AMDSMI_SCRIPT");
    FILE *file = path ? fopen(path, "r") : NULL;
    int seen = 0;
    while (file && fgets(line, LINE, file)) {
        if (strncmp(line, word, strlen(word)) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        if (seen++ == number) break;
    }
    if (file) fclose(file);
    return number < 0 ? seen : (seen == number + 1);
}

static int value(const char *line, const char *key, char *text) {
    char wanted[64];
    const char *start;
    snprintf(wanted, sizeof wanted, " %s=", key);
    start = strstr(line, wanted);
    if (!start) return NOT_SUPPORTED;
    start += strlen(wanted);
    if (*start == '!') return atoi(start + 1);
    snprintf(text, LINE, "%s", start);
    if (strcmp(key, "name") != 0) text[strcspn(text, " ")] = 0;
    return 0;
}

static int told(handle_t handle, const char *key, char *text) {
    char line[LINE];
    int code;
    if (!find("card", (int)(intptr_t)handle - 1, line)) return NOT_FOUND;
    code = value(line, "all", text);
    return code != 0 && code != NOT_SUPPORTED ? code : value(line, key, text);
}

static int number(handle_t handle, const char *key, int base, uint64_t *result) {
    char text[LINE];
    int code = told(handle, key, text);
    if (code == 0) *result = strtoull(text, NULL, base);
    return code;
}

int amdsmi_init(uint64_t flags) {
    char line[LINE];
    (void)flags;
    return find("init=!", 0, line) ? atoi(line + 6) : 0;
}

int amdsmi_shut_down(void) { return 0; }

int amdsmi_status_code_to_string(int code, const char **text) {
    (void)code;
    *text = "scripted";
    return 0;
}

int amdsmi_get_socket_handles(uint32_t *count, handle_t *sockets) {
    *count = 1;
    if (sockets) sockets[0] = (handle_t)1;
    return 0;
}

int amdsmi_get_processor_handles(handle_t socket, uint32_t *count, handle_t *cards) {
    char line[LINE];
    uint32_t index;
    (void)socket;
    *count = (uint32_t)find("card", -1, line);
    for (index = 0; cards && index < *count; index++) cards[index] = (handle_t)(intptr_t)(index + 1);
    return 0;
}

int amdsmi_get_gpu_device_bdf(handle_t card, uint64_t *bdf) {
    uint64_t bus;
    int code = number(card, "pci", 10, &bus);
    if (code == 0) *bdf = bus << 8;
    return code;
}

int amdsmi_get_gpu_asic_info(handle_t card, asic_t *info) {
    char text[LINE];
    int code = told(card, "name", text);
    if (code != 0) return code;
    memset(info, 0, sizeof *info);
    snprintf(info->name, sizeof info->name, "%.255s", text);
    number(card, "gfx", 16, &info->target);
    return 0;
}

int amdsmi_get_gpu_memory_total(handle_t card, int kind, uint64_t *bytes) {
    return kind == 0 ? number(card, "total", 10, bytes) : NOT_SUPPORTED;
}

int amdsmi_get_gpu_memory_usage(handle_t card, int kind, uint64_t *bytes) {
    return kind == 0 ? number(card, "used", 10, bytes) : NOT_SUPPORTED;
}

int amdsmi_get_gpu_activity(handle_t card, usage_t *usage) {
    uint64_t busy = 0;
    int code = number(card, "busy", 10, &busy);
    usage->gfx = (uint32_t)busy;
    return code;
}

int amdsmi_get_temp_metric(handle_t card, int sensor, int metric, int64_t *degrees) {
    (void)metric;
    return number(card, sensor == 0 ? "celsius" : "hotspot", 10, (uint64_t *)degrees);
}

int amdsmi_get_power_info(handle_t card, power_t *power) {
    uint64_t watts = 0;
    int code = number(card, "watts", 10, &watts);
    memset(power, 0, sizeof *power);
    power->current = 0xFFFF;
    power->average = (uint32_t)watts;
    return code;
}

int amdsmi_get_pcie_info(handle_t card, pcie_t *info) {
    uint64_t width = 0;
    int code = number(card, "width", 10, &width);
    memset(info, 0, sizeof *info);
    info->width = (uint16_t)width;
    return code;
}
