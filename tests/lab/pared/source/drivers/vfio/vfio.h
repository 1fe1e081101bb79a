#define VFIO_PAGES 512

long vfio_pages(long size);
long vfio_leaves(long size);
