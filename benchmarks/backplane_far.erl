%% What runs on the far node of erlang_nodes.escript.
-module(backplane_far).
-behaviour(gen_server).
-export([init/1, handle_call/3, handle_cast/2, idlers/1]).

init([]) -> {ok, 0}.

handle_call(told, _, Told) -> {reply, Told, Told};
handle_call(#{op := <<"add">>, n := N}, _, Told) -> {reply, N + 1, Told}.

handle_cast(#{op := <<"add">>}, Told) -> {noreply, Told + 1}.

idlers(N) -> [spawn(fun() -> receive stop -> ok end end) || _ <- lists:seq(1, N)].
