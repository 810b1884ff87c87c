// libnccl.so.2 beside the emulated GPU: one-way transfers between two processes over a socket, with NCCL's own
// names, codes and rules. Its communicators are always non-blocking, and a transfer shows as ncclInProgress until it
// is done: device memory is host memory here, and nothing runs on a stream behind NCCL's back.
//
// The environment plays the cases a program must survive:
//   AMOE_EMULATED_NCCL        no-join (a communicator fails while it is made), never-joins, mute (transfers never end),
//                             old (the library is of 2.10)
//   AMOE_EMULATED_NCCL_BREAK  a communicator breaks at its transfer of this number, counted from 1
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <random>
#include <thread>

#define CALL extern "C" __attribute__((visibility("default")))

namespace {

enum Code { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };

struct UniqueId {
    char internal[128];
};

/// The beginning of ncclConfig_t, all that is looked at.
struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
};

struct Transfer {
    void *memory;
    size_t bytes;
};

bool plays(const char *name) {
    const char *set = getenv("AMOE_EMULATED_NCCL");
    return set && !strcmp(set, name);
}

thread_local char last_error[160];

Code refuse(Code code, const char *why) {
    snprintf(last_error, sizeof last_error, "emulated: %s\n", why);
    return code;
}

/// NCCL wants all calls for a device from one thread, and a process has one device here.
bool foreign_thread() {
    static std::atomic<std::thread::id> owner{};
    std::thread::id nobody{}, self = std::this_thread::get_id();
    return !owner.compare_exchange_strong(nobody, self) && nobody != self;
}

}  // namespace

/// One end of a communicator. Its thread meets the peer, then does the transfers in order.
struct ncclComm {
    UniqueId id;
    int rank;
    std::atomic<int> state{IN_PROGRESS}, socket{-1}, listener{-1};
    std::atomic<bool> aborted{false};
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Transfer> waiting;
    uint64_t done = 0;
    std::thread worker;

    void run();
    bool meet();
    bool exchange(const Transfer &transfer);
    bool move(void *memory, size_t bytes, bool out);
};

void ncclComm::run() {
    if (plays("no-join") || !meet()) {
        state = SYSTEM_ERROR;
        return;
    }
    std::unique_lock<std::mutex> lock(mutex);
    state = waiting.empty() ? SUCCESS : IN_PROGRESS;
    const char *limit = getenv("AMOE_EMULATED_NCCL_BREAK");
    while (true) {
        // A peer that is gone is noticed between transfers, too.
        while (waiting.empty() && !aborted) {
            changed.wait_for(lock, std::chrono::milliseconds(1));
            char nothing;
            if (recv(socket, &nothing, 1, MSG_DONTWAIT | MSG_PEEK) == 0) state = REMOTE_ERROR;
        }
        if (aborted) return;
        const Transfer next = waiting.front();
        lock.unlock();
        const bool broken = limit && ++done == strtoull(limit, nullptr, 10);
        const bool moved = !broken && exchange(next);
        lock.lock();
        waiting.pop_front();
        if (!moved) {
            shutdown(socket, SHUT_RDWR);
            state = REMOTE_ERROR;
            return;
        }
        if (waiting.empty()) state = SUCCESS;
    }
}

/// Rank 0 listens under the id's name, rank 1 connects to it as soon as somebody does.
bool ncclComm::meet() {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path + 1, id.internal, 64);  // begins with a zero: a name outside the file system
    const socklen_t length = sizeof(sa_family_t) + 1 + 64;
    if (rank == 0) {
        listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(listener, (sockaddr *)&address, length) || listen(listener, 1)) return false;
        while (!aborted && plays("never-joins")) usleep(1000);
        if (!aborted) socket = accept(listener, nullptr, nullptr);
        return !aborted && socket >= 0;
    }
    socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
    while (!aborted) {
        if (!plays("never-joins") && !connect(socket, (sockaddr *)&address, length)) return true;
        usleep(1000);
    }
    return false;
}

bool ncclComm::exchange(const Transfer &transfer) {
    while (plays("mute")) {
        if (aborted) return false;
        usleep(1000);
    }
    uint64_t bytes = transfer.bytes;
    if (!move(&bytes, sizeof bytes, rank == 0) || bytes != transfer.bytes) return false;
    return move(transfer.memory, bytes, rank == 0);
}

bool ncclComm::move(void *memory, size_t bytes, bool out) {
    char *at = (char *)memory;
    while (bytes > 0) {
        const ssize_t moved = out ? send(socket, at, bytes, MSG_NOSIGNAL) : recv(socket, at, bytes, 0);
        if (moved <= 0) return false;
        at += moved;
        bytes -= moved;
    }
    return true;
}

namespace {

Code post(void *memory, size_t bytes, int type, int peer, ncclComm *comm, int rank) {
    if (foreign_thread()) return refuse(INVALID_USAGE, "a call from a second thread");
    if (type != 0 || peer != 1 - rank || comm->rank != rank) return refuse(INVALID_ARGUMENT, "a strange transfer");
    std::lock_guard<std::mutex> lock(comm->mutex);
    if (comm->state != SUCCESS && comm->state != IN_PROGRESS) return refuse(REMOTE_ERROR, "the communicator is broken");
    comm->waiting.push_back({memory, bytes});
    comm->state = IN_PROGRESS;
    comm->changed.notify_one();
    return IN_PROGRESS;
}

}  // namespace

CALL Code ncclGetVersion(int *version) {
    *version = plays("old") ? 21003 : 22809;
    return SUCCESS;
}
CALL const char *ncclGetErrorString(int code) {
    switch (code) {
        case SYSTEM_ERROR: return "unhandled system error";
        case INVALID_USAGE: return "invalid usage";
        case REMOTE_ERROR: return "remote process exited or there was a network error";
        default: return "error";
    }
}
CALL const char *ncclGetLastError(ncclComm *) { return last_error; }

CALL Code ncclGetUniqueId(UniqueId *id) {
    if (foreign_thread()) return refuse(INVALID_USAGE, "a call from a second thread");
    static std::random_device random;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, 64, "amoe-nccl-%d-%08x%08x", (int)getpid(), random(), random());
    return SUCCESS;
}

CALL Code ncclCommInitRankConfig(ncclComm **comm, int ranks, UniqueId id, int rank, Config *config) {
    if (foreign_thread()) return refuse(INVALID_USAGE, "a call from a second thread");
    if (ranks != 2 || rank < 0 || rank > 1) return refuse(INVALID_ARGUMENT, "a pair has two ranks");
    if (config->magic != 0xcafebeef || config->blocking != 0) return refuse(INVALID_ARGUMENT, "a strange configuration");
    ncclComm *made = *comm = new ncclComm;
    made->id = id;
    made->rank = rank;
    made->worker = std::thread([made] { made->run(); });
    return IN_PROGRESS;
}

CALL Code ncclCommGetAsyncError(ncclComm *comm, int *state) {
    if (foreign_thread()) return refuse(INVALID_USAGE, "a call from a second thread");
    *state = comm->state;
    return SUCCESS;
}

CALL Code ncclCommAbort(ncclComm *comm) {
    if (foreign_thread()) return refuse(INVALID_USAGE, "a call from a second thread");
    comm->aborted = true;
    // Wakes whoever accepts, sends or receives; a socket made only now is seen by the next turn.
    std::atomic<bool> over{false};
    std::thread waker([&] {
        while (!over) {
            shutdown(comm->listener, SHUT_RDWR);
            shutdown(comm->socket, SHUT_RDWR);
            comm->changed.notify_one();
            usleep(500);
        }
    });
    comm->worker.join();
    over = true;
    waker.join();
    if (comm->socket >= 0) close(comm->socket);
    if (comm->listener >= 0) close(comm->listener);
    delete comm;
    return SUCCESS;
}

CALL Code ncclSend(const void *memory, size_t bytes, int type, int peer, ncclComm *comm, void *) {
    return post((void *)memory, bytes, type, peer, comm, 0);
}
CALL Code ncclRecv(void *memory, size_t bytes, int type, int peer, ncclComm *comm, void *) {
    return post(memory, bytes, type, peer, comm, 1);
}
