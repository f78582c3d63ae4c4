/* For libxl and xl without a hypervisor: preloaded before Debian's libraries. What opens, opens; nothing is in the store.
   libxl_asked is the last path that libxl wanted to read. */
#include <errno.h>
#include <stddef.h>
#include <string.h>
static char handle[4096];
char libxl_asked[4096];
void *xc_interface_open(void *a, void *b, unsigned f){ (void)a;(void)b;(void)f; return handle; }
int xc_interface_close(void *x){ (void)x; return 0; }
int xc_version(void *x, int command, void *to){ (void)x;(void)to; return command == 7 ? 4096 : 0; } /* 7: page size */
int xc_get_max_cpus(void *x){ (void)x; return 1; }
int xc_get_max_nodes(void *x){ (void)x; return 1; }
void *xs_open(unsigned long f){ (void)f; return handle; }
void xs_close(void *x){ (void)x; }
int xs_fileno(void *x){ (void)x; return -1; }
void *xs_read(void *x, unsigned t, const char *path, unsigned *length){ (void)x;(void)t;(void)length;
  strncpy(libxl_asked, path, sizeof libxl_asked - 1); errno = ENOENT; return NULL; }
