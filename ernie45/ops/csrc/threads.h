// Threads for kernels: parallel(n, f) calls f(part, n) for every part, part 0 on the calling thread. Knows nothing about the work.
// Workers look for work a moment before they sleep: a decode step makes hundreds of calls of a few microseconds each, and waking a
// sleeping thread costs as much as such a call.
#pragma once
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>

namespace {

class Pool {
public:
    const pid_t owner = getpid();

    void run(int parts, const std::function<void(int, int)>& work) {
        std::lock_guard<std::mutex> alone(turn);  // one caller at a time; others wait for it
        try {
            for (; started < parts - 1; ++started) std::thread(&Pool::serve, this, started + 1, round.load()).detach();
        } catch (const std::system_error&) {  // no more threads are to be had: as many parts as there are
            parts = started + 1;
        }
        {
            std::lock_guard<std::mutex> hold(mutex);
            task = &work;
            active = parts;
            left.store(parts - 1);
            round.fetch_add(1);
        }
        wake.notify_all();
        work(0, parts);
        for (int tries = 0; left.load(std::memory_order_acquire); ++tries)
            if (tries > SPINS) std::this_thread::yield();
    }

private:
    static constexpr int SPINS = 4000;
    void serve(int part, unsigned seen) {
        for (;;) {
            for (int tries = 0; round.load(std::memory_order_acquire) == seen && tries < SPINS; ++tries) pause();
            const std::function<void(int, int)>* mine;
            int parts;
            {
                std::unique_lock<std::mutex> hold(mutex);
                wake.wait(hold, [&] { return round.load() != seen; });
                seen = round.load();
                mine = task;
                parts = active;
            }
            if (part >= parts) continue;
            (*mine)(part, parts);
            left.fetch_sub(1, std::memory_order_release);
        }
    }
    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }

    std::mutex turn, mutex;
    std::condition_variable wake;
    const std::function<void(int, int)>* task = nullptr;
    int active = 0, started = 0;
    std::atomic<int> left{0};
    std::atomic<unsigned> round{0};
};

// Never destroyed: its threads end with the process. A forked child has none of its parent's threads, so it gets a pool of its own;
// no lock here, as one that another thread of the parent held would stay locked in the child.
inline void parallel(int parts, const std::function<void(int, int)>& work) {
    if (parts <= 1) return work(0, 1);
    static std::atomic<Pool*> pool{nullptr};
    Pool* mine = pool.load();
    if (!mine || mine->owner != getpid()) {
        Pool* fresh = new Pool;
        if (pool.compare_exchange_strong(mine, fresh)) mine = fresh;
        else delete fresh;  // another thread was first, and `mine` is its pool
    }
    mine->run(parts, work);
}

}  // namespace
