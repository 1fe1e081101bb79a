#include "vfio.h"

long vfio_pages(long size)
{
	return size / 4096;
}
