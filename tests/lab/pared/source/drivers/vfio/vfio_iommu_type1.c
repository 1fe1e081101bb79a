#include "vfio.h"

long vfio_leaves(long size)
{
	long pages = vfio_pages(size);

	return (pages + VFIO_PAGES - 1) / VFIO_PAGES;
}
