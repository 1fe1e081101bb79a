#include <release.h>

const char linux_banner[] = "Linux version " RELEASE " " BUILT;
