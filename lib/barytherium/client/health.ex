defmodule Barytherium.Client.Health do
  @moduledoc false
  # Whether the feeds of a client are well. The receive loop counts what comes to each subscription
  # (`Barytherium.Native.feed/1`). Where a subscription has limits, a timer looks at them, tells of a change, and ends
  # a connection that is silent, if its subscription asks for that. The functions run in the client, and take its data.

  alias Barytherium.Client.{Events, Handlers, State, Writing}
  alias Barytherium.Native

  # Milliseconds between two looks.
  @interval 1_000

  @doc "What has come to each subscription."
  @spec feeds(State.t()) :: [Barytherium.Client.feed()]
  def feeds(data) do
    for %{subscription: %{destination: destination, feed: feed}} <- subscriptions(data),
        do: feed |> Native.feed() |> Map.put(:destination, destination)
  end

  @doc "What is wrong."
  @spec problems(atom(), State.t()) :: [Barytherium.Client.problem()]
  def problems(:connected, data) do
    lived = System.convert_time_unit(now() - data.connection.since, :native, :millisecond)
    Enum.flat_map(subscriptions(data), &problems_of(&1, lived)) ++ unhandled(data)
  end

  def problems(_state, _data), do: [:not_connected]

  defp problems_of(%{refused: true, subscription: %{destination: destination}}, _lived),
    do: [{:not_subscribed, destination}]

  defp problems_of(%{subscription: %{destination: destination, feed: feed} = limits}, lived) do
    %{idle: idle, lag: lag} = Native.feed(feed)
    # Before there was a connection nothing could come.
    silent = min(idle || lived, lived)

    for {name, value, limit} <- [
          {:silent, silent, limits.max_silence},
          {:lagging, lag, limits.max_lag}
        ],
        is_integer(value) and value > limit,
        do: {name, destination, value}
  end

  # Messages wait, and it is long since one was handled.
  defp unhandled(%{health: %{progress: {_count, since}}, handlers: handlers}) do
    waited = System.convert_time_unit(now() - since, :native, :millisecond)

    if Handlers.running?(handlers) and waited > handlers.settings.max_handling and
         Handlers.waiting?(handlers),
       do: [{:not_handled, waited}],
       else: []
  end

  defp unhandled(_not_looked_yet), do: []

  defp subscriptions(data) do
    data.subscriptions
    |> Map.values()
    |> Enum.reject(& &1.ending)
    |> Enum.sort_by(& &1.subscription.number)
  end

  @doc "Looks from now on, if there is a limit."
  @spec watch(State.t()) :: State.t()
  def watch(%{health: nil} = data) do
    if limited?(data) do
      Process.send_after(self(), :health, @interval)
      %{data | health: %{progress: progress(nil, data), kinds: []}}
    else
      data
    end
  end

  def watch(data), do: data

  defp limited?(%{handlers: %Handlers{settings: %{max_handling: limit}}}) when limit != :infinity,
    do: true

  defp limited?(data) do
    Enum.any?(data.subscriptions, fn {_number, %{subscription: limits}} ->
      limits.max_silence != :infinity or limits.max_lag != :infinity
    end)
  end

  @doc "Looks once."
  @spec look(atom(), State.t()) :: State.t()
  def look(state, %{health: health} = data) do
    Process.send_after(self(), :health, @interval)
    data = %{data | health: %{health | progress: progress(health.progress, data)}}
    problems = problems(state, data)
    kinds = Enum.map(problems, &kind/1)
    if kinds != health.kinds, do: Events.health(problems, data)
    end_silence(problems, state, put_in(data.health.kinds, kinds))
  end

  # The same problem is told once, however long it lasts.
  defp kind(problem) when is_atom(problem), do: problem
  defp kind({:not_handled, _time}), do: :not_handled
  defp kind(problem), do: {elem(problem, 0), elem(problem, 1)}

  # How much the handlers have done, and since when. Nobody has to do anything while nothing waits.
  defp progress(before, %{handlers: %Handlers{settings: settings} = handlers}) do
    count = :counters.get(settings.progress, 1)

    case before do
      {^count, since} -> if Handlers.waiting?(handlers), do: {count, since}, else: {count, now()}
      _other -> {count, now()}
    end
  end

  defp progress(_before, _no_consumer), do: nil

  defp end_silence(problems, :connected, %{connection: %{verdict: nil}} = data) do
    silent = for {:silent, destination, _time} <- problems, do: destination

    reconnect? =
      Enum.any?(subscriptions(data), fn %{subscription: one} ->
        one.on_silence == :reconnect and one.destination in silent
      end)

    if reconnect?, do: Writing.hang_up(:silent, data), else: data
  end

  defp end_silence(_problems, _state, data), do: data

  defp now, do: System.monotonic_time()
end
