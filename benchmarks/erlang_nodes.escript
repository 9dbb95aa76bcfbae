#!/usr/bin/env escript
%% -*- erlang -*-
%%! +S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel logger_level none
%%
%% The Erlang side of bench_bridge.py: two nodes, each in an operating-system process of
%% its own. This is the near one; it starts the far one, a VM with the same options, for as
%% long as it is needed. Its name, the cookie and the port come from the environment
%% (_bridge_erlang.py); epmd is not used. It reads lines "NAME COUNT", as erlang_peer.escript,
%% and answers with one number: nanoseconds, or what is said below.
-module(backplane_nodes).
-mode(compile).
-export([main/1]).

main([Source]) ->
    ok = io:setopts([{binary, false}]),
    {ok, backplane_far, Code} = compile:file(Source, [binary]),
    put(code, Code),
    io:format("OTP ~s, two nodes, ~b scheduler each~n",
              [erlang:system_info(otp_release), erlang:system_info(schedulers_online)]),
    serve().

serve() ->
    case io:get_line("") of
        eof -> down(get(far)), ok;
        {error, _} -> ok;
        Line ->
            [Name, Count] = string:lexemes(Line, " \n"),
            io:format("~b~n", [measure(list_to_atom(Name), list_to_integer(Count))]),
            serve()
    end.

%% The far node; it stays until it is killed.
far() ->
    case get(far) of
        undefined ->
            Node = start(),
            put(far, Node),
            Node;
        Node -> Node
    end.

start() ->
    Name = "far" ++ os:getenv("BENCH_PORT") ++ "@127.0.0.1",
    Erl = os:find_executable("erl"),
    Options = ["-noinput", "-boot", "start_clean", "-name", Name, "-setcookie",
               os:getenv("BENCH_COOKIE"), "-start_epmd", "false", "-erl_epmd_port",
               os:getenv("BENCH_PORT"), "+S", "1:1", "+sbwt", "none", "+sbwtdcpu", "none",
               "+sbwtdio", "none", "-kernel", "logger_level", "none",
               "inet_dist_use_interface", "{127,0,0,1}"],
    Port = open_port({spawn_executable, Erl}, [{args, Options}, {env, [{"ERL_FLAGS", false}]}]),
    {os_pid, Pid} = erlang:port_info(Port, os_pid),
    put(os_pid, Pid),
    Node = list_to_atom(Name),
    true = connect(Node, 500),
    {module, backplane_far} = rpc:call(Node, code, load_binary, [backplane_far, "far", get(code)]),
    Node.

connect(_, 0) -> false;
connect(Node, N) ->
    case net_kernel:connect_node(Node) of
        true -> true;
        _ -> timer:sleep(20), connect(Node, N - 1)
    end.

down(undefined) -> ok;
down(Node) ->
    monitor_node(Node, true),
    os:cmd("kill -9 " ++ integer_to_list(get(os_pid))),
    receive {nodedown, Node} -> ok after 5000 -> ok end,
    erase(far).

clock(Fun) ->
    Start = erlang:monotonic_time(nanosecond),
    Fun(),
    erlang:monotonic_time(nanosecond) - Start.

question(N) -> #{op => <<"add">>, key => <<"user:42">>, n => N}.

measure(call, N) ->
    Server = server(),
    Took = clock(fun() -> calls(Server, N) end),
    stop(Server),
    Took;
measure(call_64, N) ->
    Server = server(),
    Each = (N + 63) div 64,
    Took = clock(fun() ->
        [spawn_monitor(fun() -> calls(Server, Each) end) || _ <- lists:seq(1, 64)],
        downs(64)
    end),
    stop(Server),
    Took * N div (Each * 64);
measure(cast, N) ->
    Server = server(),
    Took = clock(fun() -> casts(Server, N), N = gen_server:call(Server, told, infinity) end),
    stop(Server),
    Took;
%% So many processes here wait for the end of as many over there. The answer is the far
%% VM's number in the operating system.
measure(link, N) ->
    Node = far(),
    Pids = rpc:call(Node, backplane_far, idlers, [N]),
    Self = self(),
    spawn(fun() -> Self ! {times, times(Pids)} end),
    receive after 100 -> ok end,
    get(os_pid);
%% When the first, or the last, of them heard of it: the operating system's time.
measure(heard, Which) ->
    receive {times, Times} ->
        erase(far),
        if Which =:= 0 -> lists:min(Times); true -> lists:max(Times) end
    end.

times(Pids) ->
    Parent = self(),
    [spawn(fun() ->
        Ref = monitor(process, Pid),
        receive {'DOWN', Ref, process, _, noconnection} -> Parent ! os:system_time(nanosecond) end
     end) || Pid <- Pids],
    [receive Time when is_integer(Time) -> Time end || _ <- Pids].

server() ->
    {ok, Pid} = rpc:call(far(), gen_server, start, [backplane_far, [], []]),
    0 = gen_server:call(Pid, told),
    Pid.

stop(Pid) -> gen_server:stop(Pid).

calls(_, 0) -> ok;
calls(Pid, N) ->
    Answer = N + 1,
    Answer = gen_server:call(Pid, question(N)),
    calls(Pid, N - 1).

casts(_, 0) -> ok;
casts(Pid, N) -> gen_server:cast(Pid, question(N)), casts(Pid, N - 1).

downs(0) -> ok;
downs(N) -> receive {'DOWN', _, _, _, _} -> downs(N - 1) end.
