// Preloaded into a process, shifts its wall clock by WRONG_BY_SECONDS. Monotonic clocks are unchanged.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (real == NULL) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  const char *wrong_by = getenv("WRONG_BY_SECONDS");
  if (result == 0 && clock == CLOCK_REALTIME && wrong_by != NULL) now->tv_sec += atol(wrong_by);
  return result;
}
