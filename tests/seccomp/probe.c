/* Tries what the profile must refuse, and a few things that it must not, and says for each how it ended: a line of a name
   and an errno, 0 if it worked. The first argument is a file of this user. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *file;

/* A process of its own must not outlive the question whether there may be one. */
static void child(const char *name, long answer) {
    int number = errno;
    if (answer == 0) _exit(0);
    if (answer > 0) waitpid(-1, NULL, __WALL);
    printf("%s %d\n", name, answer < 0 ? number : 0);
}

static void say(const char *name, long answer) {
    printf("%s %d\n", name, answer < 0 ? errno : 0);
}

static void opened(const char *name, int flags) {
    int descriptor = open(file, flags, 0600);
    say(name, descriptor);
    if (descriptor >= 0) close(descriptor);
}

static void memory(void) {
    say("mmap-write-exec", (long)mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    say("mprotect-adds-exec", mprotect(page, 4096, PROT_READ | PROT_EXEC));
    say("mprotect-write-exec", mprotect(page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC));
    say("pkey_mprotect-adds-exec", syscall(SYS_pkey_mprotect, page, 4096, PROT_READ | PROT_EXEC, -1));
    say("mprotect-read", mprotect(page, 4096, PROT_READ));
    int shared = memfd_create("probe", MFD_CLOEXEC);
    say("memfd", shared);
    say("ftruncate", ftruncate(shared, 4096));
    say("mmap-second-write", (long)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0));
    say("mmap-second-exec", (long)mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, shared, 0));
    close(shared);
}

static void files(void) {
    opened("open-read", O_RDONLY | O_CLOEXEC);
    opened("open-read-write", O_RDWR | O_CLOEXEC);
    opened("open-append", O_WRONLY | O_APPEND | O_CLOEXEC);
    opened("open-truncate", O_WRONLY | O_TRUNC | O_CLOEXEC);
    opened("open-create", O_WRONLY | O_CREAT | O_CLOEXEC);
    opened("open-read-create", O_RDONLY | O_CREAT | O_CLOEXEC);
    say("mkdir", mkdir("/run/codecached/directory", 0700));
    say("rename", rename(file, file));
    say("symlink", symlink("nowhere", "/run/codecached/symlink"));
}

static void sockets(void) {
    say("socket-unix", socket(AF_UNIX, SOCK_STREAM, 0));
    say("socket-tcp", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    say("socket-udp", socket(AF_INET, SOCK_DGRAM, 0));
    say("socket-udp6", socket(AF_INET6, SOCK_DGRAM, 0));
    say("socket-raw", socket(AF_INET, SOCK_RAW, 1));
    say("socket-packet", socket(AF_PACKET, SOCK_RAW, 0));
    say("socket-netlink", socket(AF_NETLINK, SOCK_RAW, 0));
}

static void processes(void) {
#ifdef SYS_fork
    child("fork", syscall(SYS_fork));
#endif
    child("clone-process", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    say("clone3", syscall(SYS_clone3, NULL, 0));
    say("kill", kill(getpid(), 0));
    say("pidfd_open", syscall(SYS_pidfd_open, getpid(), 0));
    say("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), NULL, 0, NULL, 0, 0));
    say("unshare", unshare(CLONE_FS));
    say("personality", syscall(SYS_personality, 0xffffffff));
}

static void kernel(void) {
    /* With arguments that the kernel itself refuses by another errno where it is asked at all. */
    say("io_uring_setup", syscall(SYS_io_uring_setup, 0, NULL));
    say("bpf", syscall(SYS_bpf, 9999, NULL, 0));
    say("userfaultfd", syscall(SYS_userfaultfd, 0xffffffff));
    say("perf_event_open", syscall(SYS_perf_event_open, NULL, 0, 0, 0, 0xffff));
    say("keyctl", syscall(SYS_keyctl, 9999));
    say("add_key", syscall(SYS_add_key, NULL, NULL, NULL, 0, 0));
    say("mount", syscall(SYS_mount, NULL, "/nowhere", NULL, 0, NULL));
    say("prctl-pdeathsig", syscall(SYS_prctl, 1, 0, 0, 0, 0));
}

int main(int count, char **arguments) {
    if (count < 2) return 2;
    file = arguments[1];
    setvbuf(stdout, NULL, _IONBF, 0);
    memory();
    files();
    sockets();
    processes();
    kernel();
    /* Last: whoever is traced stops at signals. */
    say("ptrace", ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    return 0;
}
