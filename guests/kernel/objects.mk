# What the Makefile of one folder of a kernel's source says, evaluated as kbuild evaluates it:
#   make -rRs -f objects.mk dir=drivers/vfio conf=include/config/auto.conf
# prints every variable that kbuild looks at (obj-m, vfio-pci-y, ...) as `NAME = WORDS`, and as
# makefiles-read which files it took to know that.
# With names="CONFIG_A CONFIG_B" instead of conf each of them is its own value, so that the lists
# say by which symbol something is in them: `obj-CONFIG_VFIO = vfio.o`.
all: ;

srctree := .
objtree := .
srcroot := .
SRCARCH := x86
ARCH := x86
src := $(dir)
obj := $(dir)

ifdef conf
include $(conf)
endif
$(foreach name,$(names),$(eval $(name) := $(name)))

include $(firstword $(wildcard $(dir)/Kbuild $(dir)/Makefile))
makefiles-read := $(MAKEFILE_LIST)

$(foreach v,$(.VARIABLES),$(if $(findstring -,$(v)),$(if $(filter file,$(origin $(v))),$(info $(v) = $($(v))))))
