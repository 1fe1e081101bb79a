/* As much of a bzImage's header as says the release: Documentation/arch/x86/boot.rst */
#include <release.h>
	.text
start:
	.org	0x202
	.ascii	"HdrS"
	.org	0x20e
	.word	kernel_version - start - 0x200
	.org	0x210
kernel_version:
	.asciz	RELEASE " (" BUILT ")"
