/* A stand-in for libnvidia-ml.so.1 with the functions that the inventory asks for.
 *
 * What it tells is a text file named by NVML_SCRIPT, read anew at every call, so that a test can
 * change a card while the library is in use:
 *
 *   init=0
 *   driver=470.256
 *   card id=1 pci=00000000:0A:00.0 total=... free=... cc=6.1 name=NVIDIA GeForce GTX 1080 Ti
 *   slice of=1 total=... free=... name=NVIDIA H200 MIG 1g.18gb
 *
 * `key=!15` answers with that nvmlReturn_t; a key that is missing answers NOT_SUPPORTED. On a card
 * `all=!15` is the answer of every call. -DWITHOUT_<function> leaves a symbol out, as an old
 * driver does. `name` is the last key of a line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE 512
#define NOT_SUPPORTED 3
#define INVALID_ARGUMENT 2
#define NOT_FOUND 6
#define LOST 15
#define SLICE 1000 /* handles are the cards' `id`, which stays; those of slices begin here */

typedef void *handle_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct {
    char legacy[16];
    unsigned int domain, bus, device, id, subsystem;
    char bus_id[32];
} pci_t;

/* The `number`th line that begins with `word`; counts them all when number is -1. */
static int find(const char *word, int number, char *line) {
    const char *path = getenv("NVML_SCRIPT");
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
    long number = (long)handle;
    int code;
    if (number > SLICE) {
        if (!find("slice", (int)(number - SLICE - 1), line)) return INVALID_ARGUMENT;
    } else {
        int card = 0;
        do {
            if (!find("card", card++, line)) return LOST;
        } while (value(line, "id", text) != 0 || atol(text) != number);
    }
    code = value(line, "all", text);
    return code != 0 && code != NOT_SUPPORTED ? code : value(line, key, text);
}

static int number(handle_t handle, const char *key, unsigned int *result) {
    char text[LINE];
    int code = told(handle, key, text);
    if (code == 0) *result = (unsigned int)strtoul(text, NULL, 10);
    return code;
}

static int global(const char *key, char *text) {
    char line[LINE];
    if (!find(key, 0, line)) return NOT_SUPPORTED;
    if (line[strlen(key) + 1] == '!') return atoi(line + strlen(key) + 2);
    snprintf(text, LINE, "%s", line + strlen(key) + 1);
    return 0;
}

int nvmlInitWithFlags(unsigned int flags) {
    char text[LINE];
    int code = global("init", text);
    (void)flags;
    return code == NOT_SUPPORTED ? 0 : code;
}

int nvmlShutdown(void) { return 0; }

const char *nvmlErrorString(int code) {
    switch (code) {
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 9: return "Driver Not Loaded";
    case 15: return "GPU is lost";
    case 18: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    char text[LINE];
    int code = global("driver", text);
    if (code == 0) snprintf(version, length, "%s", text);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    char line[LINE];
    *count = (unsigned int)find("card", -1, line);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, handle_t *handle) {
    char line[LINE], text[LINE];
    int code;
    if (!find("card", (int)index, line) || value(line, "id", text) != 0) return INVALID_ARGUMENT;
    *handle = (handle_t)atol(text);
    code = told(*handle, "all", text);
    return code == NOT_SUPPORTED ? 0 : code;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, handle_t *handle) {
    char line[LINE], text[LINE];
    int card;
    for (card = 0; find("card", card, line); card++) {
        if (value(line, "pci", text) == 0 && strcmp(text, bus_id) == 0)
            return nvmlDeviceGetHandleByIndex_v2((unsigned int)card, handle);
    }
    return NOT_FOUND;
}

int nvmlDeviceGetName(handle_t handle, char *name, unsigned int length) {
    char text[LINE];
    int code = told(handle, "name", text);
    if (code == 0) snprintf(name, length, "%s", text);
    return code;
}

int nvmlDeviceGetMemoryInfo(handle_t handle, memory_t *memory) {
    char total[LINE], free_[LINE];
    int code = told(handle, "total", total);
    if (code == 0) code = told(handle, "free", free_);
    if (code != 0) return code;
    memory->total = strtoull(total, NULL, 10);
    memory->free = strtoull(free_, NULL, 10);
    memory->used = memory->total - memory->free;
    return 0;
}

int nvmlDeviceGetPciInfo_v3(handle_t handle, pci_t *info) {
    char text[LINE];
    int code = told(handle, "pci", text);
    if (code != 0) return code;
    memset(info, 0, sizeof *info);
    snprintf(info->bus_id, sizeof info->bus_id, "%.31s", text);
    return 0;
}

#ifndef WITHOUT_nvmlDeviceGetCudaComputeCapability
int nvmlDeviceGetCudaComputeCapability(handle_t handle, int *major, int *minor) {
    char text[LINE];
    int code = told(handle, "cc", text);
    return code != 0 ? code : sscanf(text, "%d.%d", major, minor) == 2 ? 0 : 999;
}
#endif

int nvmlDeviceGetUtilizationRates(handle_t handle, utilization_t *rates) {
    rates->memory = 0;
    return number(handle, "busy", &rates->gpu);
}

#ifndef WITHOUT_nvmlDeviceGetTemperature
int nvmlDeviceGetTemperature(handle_t handle, int sensor, unsigned int *celsius) {
    return sensor != 0 ? INVALID_ARGUMENT : number(handle, "celsius", celsius);
}
#endif

int nvmlDeviceGetPowerUsage(handle_t handle, unsigned int *milliwatts) {
    return number(handle, "milliwatts", milliwatts);
}

int nvmlDeviceGetCurrPcieLinkWidth(handle_t handle, unsigned int *width) {
    return number(handle, "width", width);
}

#ifndef WITHOUT_nvmlDeviceGetMigMode
int nvmlDeviceGetMigMode(handle_t handle, unsigned int *now, unsigned int *pending) {
    int code = number(handle, "mig", now);
    *pending = *now;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(handle_t handle, unsigned int *count) {
    (void)handle;
    *count = 7;
    return 0;
}

int nvmlDeviceGetMigDeviceHandleByIndex(handle_t card, unsigned int index, handle_t *slice) {
    char line[LINE], text[LINE];
    unsigned int seen = 0;
    int row;
    for (row = 0; find("slice", row, line); row++) {
        if (value(line, "of", text) != 0 || atol(text) != (long)card) continue;
        if (seen++ != index) continue;
        *slice = (handle_t)(long)(SLICE + row + 1);
        return 0;
    }
    return NOT_FOUND;
}
#endif
