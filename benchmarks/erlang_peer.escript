#!/usr/bin/env escript
%% -*- erlang -*-
%%! +S 1:1 +P 1000000 +sbwt none +sbwtdcpu none +sbwtdio none -kernel logger_level none
%%
%% The Erlang side of the bench_*.py beside it. It reads lines "NAME COUNT", does NAME
%% that many times (or with that many processes) and answers with one number:
%% nanoseconds, or bytes for what ends in "memory". It ends at the end of its input.
-module(backplane_bench).
-mode(compile).
-behaviour(gen_server).
-export([main/1, start_child/1, init/1, handle_continue/2, handle_call/3, handle_cast/2]).

main(_) ->
    ok = io:setopts([{binary, false}]),
    io:format("OTP ~s, ~s, ~b scheduler~n",
              [erlang:system_info(otp_release), erlang:system_info(emu_flavor),
               erlang:system_info(schedulers_online)]),
    serve().

serve() ->
    case io:get_line("") of
        eof -> ok;
        {error, _} -> ok;
        Line ->
            [Name, Count] = string:lexemes(Line, " \n"),
            io:format("~b~n", [in_fresh_process(list_to_atom(Name), list_to_integer(Count))]),
            serve()
    end.

%% A process of its own starts with a small heap, whatever was measured before.
in_fresh_process(Name, Count) ->
    {Pid, Ref} = spawn_monitor(fun() -> exit({result, measure(Name, Count)}) end),
    receive {'DOWN', Ref, process, Pid, {result, Number}} -> Number end.

measure(life, N) -> clock(fun() -> life(N) end);
measure(links, N) ->
    Other = spawn(fun idle/0),
    Took = clock(fun() -> links(N, Other) end),
    stop(Other),
    Took;
measure(monitors, N) ->
    Other = spawn(fun idle/0),
    Took = clock(fun() -> monitors(N, Other) end),
    stop(Other),
    Took;
measure(cascade, N) -> cascade(N);
measure(star, N) -> star(N);
measure(memory, N) -> memory(N);
measure(restart, N) -> restarts(N, 0, 1);
measure(big_window, N) -> restarts(N, 20 * N, 3600);
measure(one_for_all, N) -> one_for_all(N);
measure(start_children, N) -> {Start, _} = start_stop(N), Start;
measure(start_stop_children, N) -> {Start, Stop} = start_stop(N), Start + Stop;
measure(supervised_memory, N) -> supervised_memory(N) - memory(N);
measure(call, N) -> with_server(fun(Pid) -> clock(fun() -> calls(Pid, N, 5000) end) end);
measure(call_infinity, N) -> with_server(fun(Pid) -> clock(fun() -> calls(Pid, N, infinity) end) end);
measure(call_10, N) -> with_server(fun(Pid) -> clients(Pid, N) end);
measure(cast, N) -> casts(N);
measure(ring_cast, N) -> ring_cast(N);
measure(ring, N) -> ring(N);
measure(spawn_message, N) -> spawn_message(N);
measure(start_cast, N) -> start_cast(N);
measure(server_memory, N) -> server_memory(N);
measure(told_memory, N) -> told_memory(N);
measure(self_cast, N) -> self_cast(N);
measure(self_messages, N) -> self() ! N, clock(fun() -> self_messages() end);
measure(ping_pong, N) -> ping_pong(1, N);
measure(ping_pong_100, N) -> ping_pong(100, N div 100).

clock(Fun) ->
    Start = erlang:monotonic_time(nanosecond),
    Fun(),
    erlang:monotonic_time(nanosecond) - Start.

idle() -> receive stop -> ok end.

stop(Pid) ->
    Ref = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Ref, _, _, _} -> ok end.

%% A process is made, monitored, ends, and its end is heard.
life(0) -> ok;
life(N) ->
    {_, Ref} = spawn_monitor(fun() -> ok end),
    receive {'DOWN', Ref, _, _, _} -> ok end,
    life(N - 1).

links(0, _) -> ok;
links(N, Pid) -> link(Pid), unlink(Pid), links(N - 1, Pid).

monitors(0, _) -> ok;
monitors(N, Pid) -> demonitor(monitor(process, Pid)), monitors(N - 1, Pid).

%% N processes, each linked to the one before it. The first is killed; the clock
%% stops when the last is known to have died.
cascade(N) ->
    Head = spawn(fun idle/0),
    Last = lists:foldl(fun(_, Before) -> linked_to(Before) end, Head, lists:seq(1, N)),
    Ref = monitor(process, Last),
    clock(fun() -> exit(Head, boom), receive {'DOWN', Ref, _, _, _} -> ok end end).

linked_to(Pid) ->
    Self = self(),
    New = spawn(fun() -> link(Pid), Self ! {linked, self()}, idle() end),
    receive {linked, New} -> New end.

%% N processes, all linked to one. That one is killed; the clock stops when all
%% are known to have died.
star(N) ->
    Hub = spawn(fun idle/0),
    Leaves = [linked_to(Hub) || _ <- lists:seq(1, N)],
    [monitor(process, Leaf) || Leaf <- Leaves],
    clock(fun() -> exit(Hub, boom), downs(N) end).

downs(0) -> ok;
downs(N) -> receive {'DOWN', _, _, _, _} -> downs(N - 1) end.

memory(N) ->
    Before = others(),
    Pids = idlers(N, []),
    After = others(),
    [exit(Pid, kill) || Pid <- Pids],
    max(After - Before, 0).

%% The memory of all processes but this one.
others() ->
    erlang:garbage_collect(),
    {memory, Mine} = process_info(self(), memory),
    erlang:memory(processes) - Mine.

idlers(0, Pids) -> Pids;
idlers(N, Pids) -> idlers(N - 1, [spawn(fun idle/0) | Pids]).

%% -- supervisors. init/1 is that of the supervisors and of their children.

start_child(Arg) -> gen_server:start_link(?MODULE, Arg, []).

init({supervisor, Flags, Specs}) -> {ok, {Flags, Specs}};
init({crashes, _, _} = Crashes) -> {ok, Crashes, {continue, crash}};
init({member, Parent}) -> Parent ! {up, self()}, {ok, member};
init({counts, Parent, N}) -> {ok, {counts, Parent, N}};
init({passes, Next}) -> {ok, {passes, Next}};
init(idle) -> {ok, idle}.

%% Stops, as often as the counter says; then tells its parent how long ago the
%% last N of those stops began.
handle_continue(crash, {crashes, Parent, Counters} = Crashes) ->
    [N, Left] = [counters:get(Counters, I) || I <- [1, 2]],
    N =:= Left andalso counters:put(Counters, 3, erlang:monotonic_time(nanosecond)),
    case Left of
        0 ->
            Parent ! {took, erlang:monotonic_time(nanosecond) - counters:get(Counters, 3)},
            {noreply, Crashes};
        _ ->
            counters:sub(Counters, 2, 1),
            {stop, crashed, Crashes}
    end.

handle_call(I, _, State) -> {reply, I, State}.

handle_cast(crash, State) -> {stop, crashed, State};
handle_cast(stop, State) -> {stop, normal, State};
handle_cast({next, Pid}, {passes, _}) -> {noreply, {passes, Pid}};
handle_cast(_, {counts, Parent, 1}) -> Parent ! over, {noreply, idle};
handle_cast(_, {counts, Parent, N}) -> {noreply, {counts, Parent, N - 1}};
handle_cast({0, Parent}, State) -> Parent ! over, {noreply, State};
handle_cast({N, Parent}, {passes, self} = State) ->
    gen_server:cast(self(), {N - 1, Parent}),
    {noreply, State};
handle_cast({N, Parent}, {passes, Next} = State) ->
    gen_server:cast(Next, {N - 1, Parent}),
    {noreply, State}.

supervised(Flags, Specs) ->
    {ok, Pid} = supervisor:start_link(?MODULE, {supervisor, Flags, Specs}),
    Pid.

end_supervisor(Pid) -> unlink(Pid), gen_server:stop(Pid, shutdown, infinity).

restarts(N, Before, Period) ->
    Counters = counters:new(3, []),
    counters:put(Counters, 1, N),
    counters:put(Counters, 2, N + Before),
    Pid = supervised(#{intensity => 1000000, period => Period},
                     [#{id => c, start => {?MODULE, start_child, [{crashes, self(), Counters}]}}]),
    Took = receive {took, Nanoseconds} -> Nanoseconds end,
    end_supervisor(Pid),
    Took.

one_for_all(N) ->
    Pid = supervised(#{strategy => one_for_all, intensity => 1000000, period => 1},
                     [#{id => I, start => {?MODULE, start_child, [{member, self()}]}}
                      || I <- lists:seq(1, 10)]),
    First = ups(),
    Took = clock(fun() -> crash_groups(N, First) end),
    end_supervisor(Pid),
    Took.

crash_groups(0, _) -> ok;
crash_groups(N, Pids) -> gen_server:cast(lists:nth(6, Pids), crash), crash_groups(N - 1, ups()).

ups() -> [receive {up, Pid} -> Pid end || _ <- lists:seq(1, 10)].

start_stop(N) ->
    Began = erlang:monotonic_time(nanosecond),
    Pid = crew(N),
    Started = erlang:monotonic_time(nanosecond),
    end_supervisor(Pid),
    {Started - Began, erlang:monotonic_time(nanosecond) - Started}.

crew(N) ->
    Pid = supervised(#{strategy => simple_one_for_one},
                     [#{id => c, start => {?MODULE, start_child, []}}]),
    [{ok, _} = supervisor:start_child(Pid, [idle]) || _ <- lists:seq(1, N)],
    Pid.

supervised_memory(N) ->
    Before = others(),
    Pid = crew(N),
    erlang:garbage_collect(Pid),
    After = others(),
    end_supervisor(Pid),
    max(After - Before, 0).

%% -- servers and processes that are sent messages.

server(Arg) ->
    {ok, Pid} = gen_server:start(?MODULE, Arg, []),
    Pid.

with_server(Fun) ->
    Pid = server(idle),
    gen_server:call(Pid, 0),
    Took = Fun(Pid),
    gen_server:stop(Pid),
    Took.

calls(_, 0, _) -> ok;
calls(Pid, N, Timeout) -> N = gen_server:call(Pid, N, Timeout), calls(Pid, N - 1, Timeout).

clients(Pid, N) ->
    Each = (N + 9) div 10,
    Took = clock(fun() ->
        [spawn_monitor(fun() -> calls(Pid, Each, 5000) end) || _ <- lists:seq(1, 10)],
        downs(10)
    end),
    Took * N div (Each * 10).

casts(N) ->
    Pid = server({counts, self(), N}),
    Took = clock(fun() -> send_casts(Pid, N), receive over -> ok end end),
    gen_server:stop(Pid),
    Took.

send_casts(_, 0) -> ok;
send_casts(Pid, N) -> gen_server:cast(Pid, N), send_casts(Pid, N - 1).

ring_cast(N) ->
    First = server({passes, none}),
    Pids = lists:foldl(fun(_, [Next | _] = Pids) -> [server({passes, Next}) | Pids] end,
                       [First], lists:seq(2, N)),
    gen_server:cast(First, {next, hd(Pids)}),
    gen_server:call(First, 0),
    Took = clock(fun() -> gen_server:cast(First, {N - 1, self()}), receive over -> ok end end),
    [gen_server:stop(Pid) || Pid <- Pids],
    Took.

self_cast(N) ->
    Pid = server({passes, self}),
    Took = clock(fun() -> gen_server:cast(Pid, {N - 1, self()}), receive over -> ok end end),
    gen_server:stop(Pid),
    Took.

pass(Next) ->
    receive
        {next, Pid} -> pass(Pid);
        stop -> ok;
        {0, Parent} -> Parent ! over, pass(Next);
        {N, Parent} -> Next ! {N - 1, Parent}, pass(Next)
    end.

ring(N) ->
    First = spawn(fun() -> pass(none) end),
    Pids = lists:foldl(fun(_, [Next | _] = Pids) -> [spawn(fun() -> pass(Next) end) | Pids] end,
                       [First], lists:seq(2, N)),
    First ! {next, hd(Pids)},
    Took = clock(fun() -> First ! {N - 1, self()}, receive over -> ok end end),
    [Pid ! stop || Pid <- Pids],
    Took.

self_messages() ->
    receive
        1 -> ok;
        N -> self() ! N - 1, self_messages()
    end.

ping_pong(Pairs, N) ->
    Firsts = [pair() || _ <- lists:seq(1, Pairs)],
    Took = clock(fun() ->
        [Pid ! {2 * N - 1, self()} || Pid <- Firsts],
        [receive over -> ok end || _ <- Firsts]
    end),
    [exit(Pid, kill) || Pid <- Firsts],
    Took.

pair() ->
    First = spawn(fun() -> pass(none) end),
    Second = spawn_link(fun() -> link(First), pass(First) end),
    unlink(Second),
    First ! {next, Second},
    First.

spawn_message(N) ->
    clock(fun() ->
        Pids = [element(1, spawn_monitor(fun idle/0)) || _ <- lists:seq(1, N)],
        [Pid ! stop || Pid <- Pids],
        downs(N)
    end).

start_cast(N) ->
    clock(fun() ->
        Pids = [server(idle) || _ <- lists:seq(1, N)],
        [begin monitor(process, Pid), gen_server:cast(Pid, stop) end || Pid <- Pids],
        downs(N)
    end).

server_memory(N) ->
    Before = others(),
    Pids = [server(idle) || _ <- lists:seq(1, N)],
    [gen_server:call(Pid, 0) || Pid <- Pids],
    After = others(),
    [exit(Pid, kill) || Pid <- Pids],
    max(After - Before, 0).

told_memory(N) ->
    Before = others(),
    Pids = [spawn(fun() -> pass(none) end) || _ <- lists:seq(1, N)],
    [Pid ! {next, self()} || Pid <- Pids],
    erlang:yield(),
    After = others(),
    [exit(Pid, kill) || Pid <- Pids],
    max(After - Before, 0).
