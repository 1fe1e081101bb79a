"""Functions are found in C source as the kernel writes it."""

from __future__ import annotations

from orchestrator.kernels.series.functions import find_definitions

SOURCE = b"""
#define SPEND(n) \\
    do { spend(n); } while (0)
static unsigned int pfnmap_stride;
module_param(pfnmap_stride, uint, 0644);
static int prototype(int a);
struct vfio_iommu {
    int (*op)(void);
};
static const struct ops ops = {
    .op = open_it,
};

static int vaddr_get_pfns(struct mm_struct *mm, unsigned long vaddr,
              unsigned long npages, int prot)
{
    if (is_invalid(vaddr))
        return call(vaddr);
retry:
    return 0;
}

static struct page **
follow_fault_pfn(struct vm_area_struct *vma, void (*done)(int))
{
}

int __init vfio_init(void)
{
}
void *pointer_of(void)
{
}
static inline void one_line(void) { }
"""


def test_definitions_are_found_and_nothing_else() -> None:
    assert find_definitions([SOURCE, None]) == [
        "follow_fault_pfn", "pointer_of", "vaddr_get_pfns", "vfio_init",
    ]  # fmt: skip


def test_long_files_take_no_time() -> None:
    assert find_definitions([b"static int word " * 20_000, b"a(" * 20_000, b"*" * 200_000]) == []
