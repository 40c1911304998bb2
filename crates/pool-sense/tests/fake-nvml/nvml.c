/* Stands for NVIDIA's management library in tests: exports the functions that pool-sense uses and answers what a file
 * says. The file lies beside the library under its name and ".values". It is read at every call, so a test changes it
 * while the library is in use.
 *
 * Lines are "key value". Keys are "driver", "count", "init", and for card 0: "0.uuid", "0.name", "0.handle",
 * "0.memory" (total reserved free used), "0.compute" and "0.graphics" (pid:bytes ...; "pid:-" tells no bytes),
 * "0.samples" (pid:time:percent ...), "0.utilisation", "0.temperature", "0.power", "0.energy".
 * The value "error 15" makes the call return NVML's error 15; a key that is not there is not supported (3).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, UNKNOWN = 999 };
enum { LONGEST = 2048, MOST = 64 };

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_t;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process_t;
typedef struct { unsigned pid; unsigned long long time; unsigned sm, memory, encoder, decoder; } sample_t;
typedef struct { unsigned gpu, memory; } utilisation_t;

static FILE *values(void) {
  Dl_info self;
  char path[LONGEST];
  if (!dladdr((void *)values, &self)) return NULL;
  snprintf(path, sizeof path, "%s.values", self.dli_fname);
  return fopen(path, "r");
}

/* Copies the value of `key`, which is of `card` where that is not negative. */
static int look(int card, const char *key, char *value) {
  char wanted[64], line[LONGEST];
  if (card < 0) snprintf(wanted, sizeof wanted, "%s ", key);
  else snprintf(wanted, sizeof wanted, "%d.%s ", card, key);
  FILE *file = values();
  if (!file) return UNKNOWN;
  int code = NOT_SUPPORTED;
  while (code == NOT_SUPPORTED && fgets(line, sizeof line, file)) {
    if (strncmp(line, wanted, strlen(wanted))) continue;
    line[strcspn(line, "\n")] = 0;
    strcpy(value, line + strlen(wanted));
    code = SUCCESS;
    sscanf(value, "error %d", &code);
  }
  fclose(file);
  return code;
}

static int card_of(void *device) { return (int)((char *)device - (char *)0) - 1; }

static int text(int card, const char *key, char *out, unsigned length) {
  char value[LONGEST];
  int code = look(card, key, value);
  if (code) return code;
  if (strlen(value) + 1 > length) return INSUFFICIENT_SIZE;
  strcpy(out, value);
  return SUCCESS;
}

static int number(int card, const char *key, unsigned long long *out) {
  char value[LONGEST];
  int code = look(card, key, value);
  if (!code) *out = strtoull(value, NULL, 10);
  return code;
}

static int small_number(int card, const char *key, unsigned *out) {
  unsigned long long value;
  int code = number(card, key, &value);
  if (!code) *out = (unsigned)value;
  return code;
}

static int processes(int card, const char *key, unsigned *count, process_t *out) {
  char value[LONGEST], *rest = value, *word;
  int code = look(card, key, value);
  if (code) return code;
  unsigned found = 0;
  process_t list[MOST];
  while (found < MOST && (word = strsep(&rest, " "))) {
    char *bytes = strchr(word, ':');
    if (!bytes) continue;
    unsigned long long used = bytes[1] == '-' ? ~0ULL : strtoull(bytes + 1, NULL, 10);
    list[found++] = (process_t){(unsigned)atoi(word), used, ~0u, ~0u};
  }
  unsigned room = *count;
  *count = found;
  if (found && (!out || room < found)) return INSUFFICIENT_SIZE;
  if (found) memcpy(out, list, found * sizeof *list);
  return SUCCESS;
}

int nvmlInit_v2(void) {
  char value[LONGEST];
  int code = look(-1, "init", value);
  return code == NOT_SUPPORTED ? SUCCESS : code;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "an error of the fake library"; }
int nvmlSystemGetDriverVersion(char *out, unsigned length) { return text(-1, "driver", out, length); }
int nvmlDeviceGetCount_v2(unsigned *count) { return small_number(-1, "count", count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  char value[LONGEST];
  int code = look((int)index, "handle", value);
  *device = (char *)0 + index + 1;
  return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlDeviceGetUUID(void *device, char *out, unsigned length) { return text(card_of(device), "uuid", out, length); }
int nvmlDeviceGetName(void *device, char *out, unsigned length) { return text(card_of(device), "name", out, length); }

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_t *out) {
  char value[LONGEST];
  int code = look(card_of(device), "memory", value);
  if (code) return code;
  if (out->version != (sizeof *out | 2u << 24)) return INVALID_ARGUMENT;
  return sscanf(value, "%llu %llu %llu %llu", &out->total, &out->reserved, &out->free, &out->used) == 4 ? SUCCESS : UNKNOWN;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_t *out) {
  return processes(card_of(device), "compute", count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, process_t *out) {
  return processes(card_of(device), "graphics", count, out);
}

int nvmlDeviceGetProcessUtilization(void *device, sample_t *out, unsigned *count, unsigned long long last_seen) {
  char value[LONGEST], *rest = value, *word;
  int code = look(card_of(device), "samples", value);
  if (code) return code;
  unsigned found = 0, room = *count;
  sample_t list[MOST];
  while (found < MOST && (word = strsep(&rest, " "))) {
    unsigned pid, percent;
    unsigned long long time;
    if (sscanf(word, "%u:%llu:%u", &pid, &time, &percent) == 3 && time > last_seen)
      list[found++] = (sample_t){pid, time, percent, 0, 0, 0};
  }
  *count = found;
  if (!found) return NOT_FOUND;
  if (!out || room < found) return INSUFFICIENT_SIZE;
  memcpy(out, list, found * sizeof *list);
  return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(void *device, utilisation_t *out) {
  char value[LONGEST];
  int code = look(card_of(device), "utilisation", value);
  if (code) return code;
  return sscanf(value, "%u %u", &out->gpu, &out->memory) == 2 ? SUCCESS : UNKNOWN;
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) {
  return sensor ? INVALID_ARGUMENT : small_number(card_of(device), "temperature", out);
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *out) { return small_number(card_of(device), "power", out); }
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) {
  return number(card_of(device), "energy", out);
}
