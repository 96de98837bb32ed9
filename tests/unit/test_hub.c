/* The hub between loops and core: a request is over for both, or for neither. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "controller/serve/hub.h"

struct fixture {
    uv_loop_t uv;
    struct hub *hub;
    struct hub_loop *loop;
    uint32_t seen[8]; /* commands, by kind */
    struct core_command last;
};

static void on_command(void *user, struct hub_request *r, const struct core_command *cmd,
                       const struct core_told *told)
{
    struct fixture *f = user;
    (void)r;
    (void)told;
    f->seen[cmd->kind]++;
    f->last = *cmd;
}

static int set_up(void **state)
{
    static struct fixture f;
    const char *why;
    struct core_worker_config workers[2] = {{.role = ROLE_BOTH,
                                             .block_size = 16,
                                             .num_gpu_blocks = 1000,
                                             .max_num_seqs = 8,
                                             .max_num_batched_tokens = 2048},
                                            {.role = ROLE_BOTH,
                                             .block_size = 16,
                                             .num_gpu_blocks = 1000,
                                             .max_num_seqs = 8,
                                             .max_num_batched_tokens = 2048}};
    struct core_config c = {.policy = "round_robin",
                            .workers = workers,
                            .n_workers = 2,
                            .queue_max_requests = 10,
                            .queue_timeout_ps = PS_NEVER,
                            .max_retries = 2,
                            .max_requests = 100};
    f = (struct fixture){.hub = hub_new(&c, &why)};
    if (!f.hub)
        fail_msg("%s", why);
    uv_loop_init(&f.uv);
    f.loop = hub_join(f.hub, &f.uv, on_command, &f);
    hub_worker(f.loop, 0, CORE_EV_WORKER_UP);
    hub_worker(f.loop, 1, CORE_EV_WORKER_UP);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    hub_leave(f->loop);
    uv_run(&f->uv, UV_RUN_DEFAULT);
    hub_free(f->hub);
    return uv_loop_close(&f->uv);
}

static void arrive(struct fixture *f, struct hub_request *r)
{
    uint32_t before = f->seen[CORE_CMD_DISPATCH];
    assert_int_equal(hub_arrive(f->loop, r, &(struct core_request){.prompt_tok = 10}), 0);
    assert_int_equal(f->seen[CORE_CMD_DISPATCH], before + 1);
}

static void nothing_is_left(struct fixture *f)
{
    struct hub_stats s;
    hub_get_stats(f->hub, &s);
    assert_int_equal(s.core.inflight, 0);
    assert_int_equal(s.core.queued, 0);
}

/* The core had planned another worker meanwhile: the handle is free for the next request all the same. */
static void an_answer_from_a_worker_that_was_not_expected(void **state)
{
    struct fixture *f = *state;
    struct hub_request r;
    arrive(f, &r);
    hub_done(&r, !f->last.worker, 5, 0, false);
    nothing_is_left(f);
    for (int i = 0; i < 3; i++) {
        arrive(f, &r);
        hub_done(&r, f->last.worker, 5, 0, false);
    }
    nothing_is_left(f);
}

static void a_loss_on_a_worker_that_was_not_expected(void **state)
{
    struct fixture *f = *state;
    struct hub_request r;
    for (int partial = 0; partial < 2; partial++) {
        arrive(f, &r);
        uint32_t rejected = f->seen[CORE_CMD_REJECT];
        hub_failed(&r, !f->last.worker, partial);
        assert_int_equal(f->seen[CORE_CMD_REJECT], rejected + 1);
        assert_int_equal(f->last.reason, partial ? CORE_REASON_PARTIAL : CORE_REASON_RETRIES);
        nothing_is_left(f);
    }
    arrive(f, &r);
    hub_cancelled(&r);
    nothing_is_left(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_answer_from_a_worker_that_was_not_expected, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_loss_on_a_worker_that_was_not_expected, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
