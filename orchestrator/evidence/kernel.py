"""What plan.json and manifest.json say of a kernel: its identity, and what it was made of."""

from __future__ import annotations

from pydantic import Field

from orchestrator.evidence.model import Evidence


class PackageRecord(Evidence):
    """One of Debian's packages that a kernel comes from."""

    name: str
    version: str
    sha256: str
    """Hash of the .deb file, from Debian's signed lists."""
    source: str | None = None
    """Source package that it was built from; null for the package that has the kernel's source."""
    filename: str | None = None
    """Path of the .deb file on the mirror."""


class SourceRecord(Evidence):
    """Source that a kernel was built from: a git commit, a folder, a tarball or a package. Each
    kind has its own keys. Rebuilt modules have the source's package here instead."""

    kind: str | None = None
    """git, folder, tarball or package."""
    path: str | None = None
    commit: str | None = None
    """Full SHA of the commit."""
    tree: str | None = None
    """Git's SHA of the files."""
    describe: str | None = None
    """`git describe` of the commit."""
    name: str | None = None
    """Name of the package."""
    version: str | None = None
    sha256: str | None = None
    """Hash of the tarball or package."""

    def texts(self) -> dict[str, str]:
        """Return the keys that have a text, in the order in which they were written."""
        return {key: value for key, value in self.to_json().items() if isinstance(value, str)}


class PatchRecord(Evidence):
    """One patch of a kernel's series."""

    origin: str
    """Item of the scenario's series that the patch comes from."""
    subject: str
    digest: str | None = None
    """Digest of what the patch does. Older runs have a hash of its text as `sha256` instead."""


class ConfigRecord(Evidence):
    """Configuration of a kernel that was built from source."""

    sha256: str
    asked: tuple[str, ...] = Field(default=())
    """Options that the scenario sets: `CONFIG_NAME=VALUE`."""


class ModuleBuild(Evidence):
    """One build of a kernel module."""

    srcversion: str | None
    """Version that the module shows in /sys/module/NAME/srcversion; null if it has none."""


class ModuleRecord(Evidence):
    """A module of a package that was rebuilt."""

    stock: ModuleBuild
    """The package's own module."""
    new: ModuleBuild
    """The rebuilt module."""


class Provenance(Evidence):
    """What a kernel was made of. Each way to get a kernel records its own keys; none of them is in
    all kernels."""

    origin: str | None = Field(default=None, alias="from")
    """The kernel as the scenario spells it."""
    name: str | None = None
    version: str | None = None
    """Version of the package."""
    packages: tuple[PackageRecord, ...] = ()
    """Packages that were unpacked."""
    package: Provenance | None = None
    """Package whose modules were rebuilt."""
    source: SourceRecord | None = None
    series: tuple[PatchRecord, ...] = ()
    config: ConfigRecord | None = None
    compiler: str | None = None
    """First line of `gcc --version`."""
    build_root: str | None = None
    """Digest of the build root, which holds assembler, linker and libraries."""
    image_sha256: str | None = None
    """Hash of the kernel's image."""
    modules: dict[str, ModuleRecord] | None = None
    """Path of each rebuilt module in the kernel's tree, without its suffix -> its builds."""


class KernelRecord(Evidence):
    """A kernel: of an arm, or of the guests."""

    release: str
    """Release, as `uname -r` prints it."""
    source: str
    """The kernel as the scenario spells it."""
    digest: str
    """Identifies the kernel's content: equal for equal kernels."""
    provenance: Provenance = Provenance()
    """Empty for the kernel in a manifest: plan.json has it."""
