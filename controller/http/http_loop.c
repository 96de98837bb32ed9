/* http_loop.c - see http_loop.h. */
#include "controller/http/http_loop.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#define BODY_CLASSES 16u /* 64 KiB << class: up to 2 GiB */
#define BODY_MIN_BYTES ((size_t)64 << 10)
#define SLOT_WORDS (HTTP_WHEEL_SLOTS / 64)

struct idle_body {
    struct idle_body *next;
};

struct http_loop {
    uv_loop_t *uv;

    struct http_block *blocks; /* idle, the last used first: it is still in the processor's cache */
    struct idle_body *bodies[BODY_CLASSES];
    struct http_loop_stats stats;
    char *scratch, *records;

    uv_idle_t idle; /* runs while there are tasks */
    struct http_task *tasks, **tasks_end;
    unsigned open_handles;

    uv_timer_t tick;
    uint64_t tick_at_ms; /* UINT64_MAX: not set */
    uint64_t seen_ms;    /* slots up to here have been looked at */
    struct http_timer *slots[HTTP_WHEEL_SLOTS];
    uint64_t in_use[SLOT_WORDS]; /* bit per slot that is not empty */

    uv_prepare_t before_sleep;
    uint64_t lap_ns; /* when the callback in progress began; 0: none since the loop slept */
    long switches;   /* how often the thread had been preempted, a little earlier */
    struct http_loop_laps laps;

    time_t date_s;
    char date[32];
    size_t date_len;
};

static void *must(void *memory)
{
    if (!memory)
        abort();
    return memory;
}

/* --- memory ------------------------------------------------------------------------------------------------ */

/* Buffers come from the system, not from the heap: among longer-lived small objects, those of a burst would keep the
 * heap as large as it ever was (9,000 streams that began at once: 18.7 KB each against 2.8 KB). Sanitizers get malloc,
 * so that they see the ends. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WEIR_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||                         \
    __has_feature(memory_sanitizer)
#define WEIR_SANITIZED 1
#endif
#endif

static void *pages_get(size_t bytes)
{
#ifdef WEIR_SANITIZED
    return malloc(bytes);
#else
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
#endif
}

static void pages_put(void *p, size_t bytes)
{
#ifdef WEIR_SANITIZED
    (void)bytes;
    free(p);
#else
    munmap(p, bytes);
#endif
}

/* --- laps -------------------------------------------------------------------------------------------------- */

static long preemptions(void)
{
    struct rusage r;
    return getrusage(RUSAGE_THREAD, &r) ? 0 : r.ru_nivcsw;
}

/* One writer: no locked instruction needed. */
static void put_figure(_Atomic uint64_t *figure, uint64_t x)
{
    atomic_store_explicit(figure, x, memory_order_relaxed);
}

static void long_lap(struct http_loop *loop, uint64_t took_ns)
{
    long switches = preemptions();
    bool preempted = switches != loop->switches;
    loop->switches = switches;
    if (preempted) {
        put_figure(&loop->laps.preempted, loop->laps.preempted + 1);
        return;
    }
    put_figure(&loop->laps.blocked, loop->laps.blocked + 1);
    if (took_ns > loop->laps.longest_ns)
        put_figure(&loop->laps.longest_ns, took_ns);
}

void http_lap_begin(struct http_loop *loop)
{
    if (!loop->lap_ns)
        loop->lap_ns = uv_hrtime();
}

void http_lap_end(struct http_loop *loop)
{
    uint64_t now = uv_hrtime(), took = now - loop->lap_ns;
    loop->lap_ns = now;
    if (took >= HTTP_LONG_LAP_NS)
        long_lap(loop, took);
    else if (took > atomic_load_explicit(&loop->laps.longest_ns, memory_order_relaxed))
        put_figure(&loop->laps.longest_ns, took);
}

static void on_sleep(uv_prepare_t *prepare)
{
    struct http_loop *loop = prepare->data;
    if (loop->lap_ns)
        http_lap_end(loop);
    loop->lap_ns = 0;
}

const struct http_loop_laps *http_loop_laps(const struct http_loop *loop)
{
    return &loop->laps;
}

/* --- the loop ---------------------------------------------------------------------------------------------- */

struct http_loop *http_loop_new(uv_loop_t *uv)
{
    struct http_loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return NULL;
    loop->uv = uv;
    loop->scratch = malloc(HTTP_READ_BYTES);
    if (!loop->scratch) {
        free(loop);
        return NULL;
    }
    uv_timer_init(uv, &loop->tick); /* neither can fail */
    uv_idle_init(uv, &loop->idle);
    uv_prepare_init(uv, &loop->before_sleep);
    uv_prepare_start(&loop->before_sleep, on_sleep);
    uv_unref((uv_handle_t *)&loop->before_sleep);
    loop->tick.data = loop->idle.data = loop->before_sleep.data = loop;
    loop->open_handles = 3;
    loop->switches = preemptions();
    loop->tasks_end = &loop->tasks;
    loop->tick_at_ms = UINT64_MAX;
    loop->seen_ms = uv_now(uv) / HTTP_TICK_MS * HTTP_TICK_MS;
    return loop;
}

static void on_closed(uv_handle_t *handle)
{
    struct http_loop *loop = handle->data;
    if (--loop->open_handles)
        return;
    for (struct http_block *b = loop->blocks, *next; b; b = next) {
        next = b->next;
        pages_put(b, sizeof *b);
    }
    for (unsigned c = 0; c < BODY_CLASSES; c++)
        for (struct idle_body *b = loop->bodies[c], *next; b; b = next) {
            next = b->next;
            pages_put(b, BODY_MIN_BYTES << c);
        }
    free(loop->records);
    free(loop->scratch);
    free(loop);
}

void http_loop_free(struct http_loop *loop)
{
    if (!loop)
        return;
    uv_close((uv_handle_t *)&loop->tick, on_closed);
    uv_close((uv_handle_t *)&loop->idle, on_closed);
    uv_close((uv_handle_t *)&loop->before_sleep, on_closed);
}

uv_loop_t *http_loop_uv(const struct http_loop *loop)
{
    return loop->uv;
}

char *http_loop_scratch(struct http_loop *loop)
{
    return loop->scratch;
}

char *http_loop_records(struct http_loop *loop)
{
    if (!loop->records)
        loop->records = must(malloc(HTTP_READ_BYTES));
    return loop->records;
}

struct http_loop_stats http_loop_stats(const struct http_loop *loop)
{
    return loop->stats;
}

/* --- buffers --------------------------------------------------------------------------------------------- */

struct http_block *http_block_get(struct http_loop *loop)
{
    struct http_block *b = loop->blocks;
    if (b) {
        loop->blocks = b->next;
        loop->stats.blocks_idle--;
    } else {
        b = must(pages_get(sizeof *b));
        loop->stats.mallocs++;
    }
    loop->stats.blocks_used++;
    b->next = NULL;
    b->from = b->to = 0;
    return b;
}

void http_block_put(struct http_loop *loop, struct http_block *b)
{
    loop->stats.blocks_used--;
    if (loop->stats.blocks_idle >= HTTP_POOL_BYTES / sizeof *b) {
        pages_put(b, sizeof *b);
        return;
    }
    b->next = loop->blocks;
    loop->blocks = b;
    loop->stats.blocks_idle++;
}

static unsigned class_of(size_t want)
{
    unsigned c = 0;
    while (c < BODY_CLASSES && (BODY_MIN_BYTES << c) < want)
        c++;
    return c;
}

static char *body_get(struct http_loop *loop, unsigned class)
{
    struct idle_body *b = loop->bodies[class];
    if (!b) {
        loop->stats.mallocs++;
        return pages_get(BODY_MIN_BYTES << class);
    }
    loop->bodies[class] = b->next;
    loop->stats.body_bytes_idle -= BODY_MIN_BYTES << class;
    return (char *)b;
}

int http_body_grow(struct http_loop *loop, struct http_body *body, size_t want)
{
    unsigned class = class_of(want);
    if (want <= body->cap)
        return 0;
    if (class >= BODY_CLASSES)
        return WEIR_E_NOMEM;
    struct http_body bigger = {body_get(loop, class), body->len, BODY_MIN_BYTES << class};
    if (!bigger.at)
        return WEIR_E_NOMEM;
    loop->stats.body_bytes_used += bigger.cap;
    if (body->len)
        memcpy(bigger.at, body->at, body->len);
    http_body_put(loop, body);
    *body = bigger;
    return 0;
}

void http_body_put(struct http_loop *loop, struct http_body *body)
{
    if (!body->cap)
        return;
    loop->stats.body_bytes_used -= body->cap;
    if (loop->stats.body_bytes_idle + body->cap > HTTP_POOL_BYTES) {
        pages_put(body->at, body->cap);
    } else {
        unsigned class = class_of(body->cap);
        struct idle_body *b = (struct idle_body *)body->at;
        b->next = loop->bodies[class];
        loop->bodies[class] = b;
        loop->stats.body_bytes_idle += body->cap;
    }
    *body = (struct http_body){NULL, 0, 0};
}

/* --- timers ---------------------------------------------------------------------------------------------- */

void http_timer_init(struct http_timer *timer, void (*fire)(struct http_timer *timer))
{
    *timer = (struct http_timer){.at_ms = UINT64_MAX, .fire = fire};
}

static unsigned slot_of(uint64_t ms)
{
    return (unsigned)(ms / HTTP_TICK_MS % HTTP_WHEEL_SLOTS);
}

static void unlink_timer(struct http_loop *loop, struct http_timer *t)
{
    if (!t->link)
        return;
    unsigned slot = slot_of(t->slot_ms);
    *t->link = t->next;
    if (t->next)
        t->next->link = t->link;
    t->link = NULL;
    if (!loop->slots[slot])
        loop->in_use[slot / 64] &= ~(UINT64_C(1) << slot % 64);
}

static void on_tick(uv_timer_t *tick);

static void arm(struct http_loop *loop, uint64_t at_ms)
{
    if (at_ms >= loop->tick_at_ms)
        return;
    uint64_t now = uv_now(loop->uv);
    loop->tick_at_ms = at_ms;
    uv_timer_start(&loop->tick, on_tick, at_ms > now ? at_ms - now : 0, 0);
}

/* Into the slot in which it fires, or (being further away than the wheel goes round) the last one before. */
static void link_timer(struct http_loop *loop, struct http_timer *t)
{
    uint64_t furthest = loop->seen_ms + (HTTP_WHEEL_SLOTS - 1) * HTTP_TICK_MS;
    uint64_t at = (t->at_ms / HTTP_TICK_MS + 1) * HTTP_TICK_MS;
    t->slot_ms = at < furthest ? at : furthest;
    if (t->slot_ms <= loop->seen_ms)
        t->slot_ms = loop->seen_ms + HTTP_TICK_MS;
    unsigned slot = slot_of(t->slot_ms);
    t->next = loop->slots[slot];
    t->link = &loop->slots[slot];
    if (t->next)
        t->next->link = &t->next;
    loop->slots[slot] = t;
    loop->in_use[slot / 64] |= UINT64_C(1) << slot % 64;
    arm(loop, t->slot_ms);
}

/* When the next slot in use is due; UINT64_MAX: all are empty. */
static uint64_t next_slot_ms(const struct http_loop *loop)
{
    for (uint64_t ms = loop->seen_ms + HTTP_TICK_MS, i = 0; i < HTTP_WHEEL_SLOTS; i++) {
        unsigned slot = slot_of(ms);
        if (!loop->in_use[slot / 64] && slot % 64 == 0) { /* skip a whole word */
            i += 63;
            ms += 64 * HTTP_TICK_MS;
            continue;
        }
        if (loop->slots[slot])
            return ms;
        ms += HTTP_TICK_MS;
    }
    return UINT64_MAX;
}

/* Fires or re-files what is in one slot. A callback may start, stop and deinit any timer. */
static void visit(struct http_loop *loop, unsigned slot, uint64_t now)
{
    struct http_timer *list = loop->slots[slot];
    loop->slots[slot] = NULL;
    loop->in_use[slot / 64] &= ~(UINT64_C(1) << slot % 64);
    if (list)
        list->link = &list;
    while (list) {
        struct http_timer *t = list;
        unlink_timer(loop, t);
        if (t->at_ms <= now) {
            t->at_ms = UINT64_MAX;
            t->fire(t);
            http_lap_end(loop);
        } else if (t->at_ms != UINT64_MAX) {
            link_timer(loop, t);
        }
    }
}

static void on_tick(uv_timer_t *tick)
{
    struct http_loop *loop = tick->data;
    uint64_t now = uv_now(loop->uv), end = loop->seen_ms + HTTP_WHEEL_SLOTS * HTTP_TICK_MS;
    http_lap_begin(loop);
    loop->switches = preemptions();
    loop->tick_at_ms = 0; /* nothing arms it before this round is over */
    uint64_t last = now / HTTP_TICK_MS * HTTP_TICK_MS;
    if (last > end) /* after a long sleep once round is enough */
        loop->seen_ms = last - HTTP_WHEEL_SLOTS * HTTP_TICK_MS;
    while (loop->seen_ms + HTTP_TICK_MS <= now) {
        loop->seen_ms += HTTP_TICK_MS;
        visit(loop, slot_of(loop->seen_ms), now);
    }
    loop->tick_at_ms = UINT64_MAX;
    uint64_t next = next_slot_ms(loop);
    if (next != UINT64_MAX)
        arm(loop, next);
}

void http_timer_start(struct http_loop *loop, struct http_timer *timer, uint64_t delay_ms)
{
    uint64_t now = uv_now(loop->uv);
    timer->at_ms = now + delay_ms;
    if (timer->link) {
        if (timer->at_ms >= timer->slot_ms)
            return; /* it will be looked at before, and filed again */
        unlink_timer(loop, timer);
    }
    if (loop->tick_at_ms == UINT64_MAX) /* the wheel was empty: it starts now */
        loop->seen_ms = now / HTTP_TICK_MS * HTTP_TICK_MS;
    link_timer(loop, timer);
}

void http_timer_deinit(struct http_loop *loop, struct http_timer *timer)
{
    timer->at_ms = UINT64_MAX;
    unlink_timer(loop, timer);
}

/* --- tasks ----------------------------------------------------------------------------------------------- */

void http_task_init(struct http_task *task, void (*run)(struct http_task *task))
{
    *task = (struct http_task){.run = run};
}

void http_task_deinit(struct http_loop *loop, struct http_task *task)
{
    if (!task->link)
        return;
    *task->link = task->next;
    if (task->next)
        task->next->link = task->link;
    else
        loop->tasks_end = task->link;
    task->link = NULL;
}

/* Runs what was posted up to now; what is posted meanwhile waits for the next turn, so that sockets have theirs. */
static void on_idle(uv_idle_t *idle)
{
    struct http_loop *loop = idle->data;
    struct http_task last = {.run = NULL};
    http_lap_begin(loop);
    http_task_post(loop, &last);
    while (loop->tasks != &last) {
        struct http_task *task = loop->tasks;
        http_task_deinit(loop, task);
        task->run(task);
        http_lap_end(loop);
    }
    http_task_deinit(loop, &last);
    if (!loop->tasks)
        uv_idle_stop(idle);
}

void http_task_post(struct http_loop *loop, struct http_task *task)
{
    if (task->link)
        return;
    if (!loop->tasks)
        uv_idle_start(&loop->idle, on_idle);
    task->next = NULL;
    task->link = loop->tasks_end;
    *loop->tasks_end = task;
    loop->tasks_end = &task->next;
}

/* --- the date -------------------------------------------------------------------------------------------- */

struct http_slice http_loop_date(struct http_loop *loop)
{
    static const char days[7][4] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char months[12][4] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (now.tv_sec != loop->date_s) {
        struct tm tm;
        gmtime_r(&now.tv_sec, &tm);
        size_t n = strftime(loop->date, sizeof loop->date, "xxx, %d xxx %Y %H:%M:%S GMT", &tm);
        memcpy(loop->date, days[tm.tm_wday], 3); /* names of days must not depend on a locale */
        memcpy(loop->date + 8, months[tm.tm_mon], 3);
        loop->date_len = n;
        loop->date_s = now.tv_sec;
    }
    return (struct http_slice){loop->date, loop->date_len};
}
