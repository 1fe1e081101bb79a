/*
 * Create a VM with one vCPU, run it until it halts, destroy it; again and again. Destroying a VM
 * waits for RCU callbacks (rcu_barrier() in kvm_mmu_uninit_tdp_mmu()), so it hangs if a timer or
 * an interrupt of an idle CPU is lost. Prints a line for each VM that took over a second, and the
 * number of VMs and the slowest one every ten seconds.
 *
 * Between two VMs it sleeps up to PAUSE milliseconds, so that the CPUs become idle.
 *
 *   vmloop SECONDS PAUSE
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Returns the seconds that it took to destroy the VM. */
static double one_vm(int kvm)
{
	struct kvm_userspace_memory_region region = { .guest_phys_addr = 0, .memory_size = 4096 };
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_run *run;
	int vm, vcpu, size;
	double start;
	char *memory;

	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		err(1, "KVM_CREATE_VM");
	memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memset(memory, 0xf4, 4096);	/* hlt */
	region.userspace_addr = (unsigned long)memory;
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		err(1, "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		err(1, "KVM_CREATE_VCPU");
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (memory == MAP_FAILED || run == MAP_FAILED)
		err(1, "mmap");
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
	ioctl(vcpu, KVM_SET_REGS, &regs);
	if (ioctl(vcpu, KVM_RUN, 0) || run->exit_reason != KVM_EXIT_HLT)
		errx(1, "the VM did not halt: exit reason %u", run->exit_reason);
	start = now();
	munmap(run, size);
	close(vcpu);
	close(vm);
	munmap(memory, 4096);
	return now() - start;
}

int main(int argc, char **argv)
{
	double start = now(), told = start, slowest = 0, seconds;
	long vms = 0;
	int kvm = open("/dev/kvm", O_RDWR);

	if (kvm < 0 || argc != 3)
		err(1, "vmloop SECONDS PAUSE, with /dev/kvm");
	setbuf(stdout, NULL);
	while (now() - start < atof(argv[1])) {
		usleep(1000 * (rand() % (1 + atoi(argv[2]))));
		seconds = one_vm(kvm);
		vms++;
		if (seconds > slowest)
			slowest = seconds;
		if (seconds > 1)
			printf("vmloop: VM %ld took %.1f s to end\n", vms, seconds);
		if (now() - told > 10) {
			told = now();
			printf("vmloop: %.0f s, %ld VMs, slowest end %.2f s\n",
			       told - start, vms, slowest);
		}
	}
	printf("vmloop: done: %ld VMs in %.0f s, slowest end %.2f s\n", vms, now() - start, slowest);
	return 0;
}
