defmodule Barytherium.Client.Health do
  @moduledoc false
  # Whether the feeds of a client are well. The receive loop counts what comes to each subscription
  # (`Barytherium.Native.feed/1`). Where a subscription has limits, a timer looks at them, tells of a change, and ends
  # a connection that is silent, if its subscription asks for that. The functions run in the client, and take its data.

  alias Barytherium.Client.{Events, Handlers, State, Writing}
  alias Barytherium.{Histogram, Native}

  # Milliseconds between two looks.
  @interval 1_000

  @doc "What has come to each subscription."
  @spec feeds(State.t()) :: [Barytherium.Client.feed()]
  def feeds(data) do
    for %{subscription: %{destination: destination, feed: feed} = subscription} <-
          subscriptions(data) do
      feed
      |> Native.feed()
      |> Map.put(:destination, destination)
      |> Map.merge(delays(subscription))
    end
  end

  # Only handlers know when they begin.
  defp delays(%{delays: nil}), do: %{to_start: nil, to_ack: nil}

  defp delays(%{delays: delays}),
    do: Map.new(delays, fn {name, counters} -> {name, Histogram.read(counters)} end)

  @doc "What is wrong."
  @spec problems(atom(), State.t()) :: [Barytherium.Client.problem()]
  def problems(:connected, data),
    do: Enum.flat_map(subscriptions(data), &problems_of/1) ++ unhandled(data.handlers)

  def problems(_state, _data), do: [:not_connected]

  defp problems_of(%{refused: true, subscription: %{destination: destination}}),
    do: [{:not_subscribed, destination}]

  defp problems_of(%{subscription: %{destination: destination} = limits} = entry) do
    feed = Native.feed(limits.feed)

    for {name, value, limit} <- [
          {:silent, silent(feed, entry), limits.max_silence},
          {:lagging, feed.lag, limits.max_lag}
        ],
        is_integer(value) and value > limit,
        do: {name, destination, value}
  end

  # How long nothing has come, on whichever connection.
  defp silent(feed, entry), do: feed.idle || since(entry[:first])

  defp since(nil), do: 0
  defp since(time), do: System.monotonic_time(:millisecond) - time

  defp unhandled(%Handlers{settings: %{max_handling: limit}} = handlers) do
    time = Handlers.working(handlers)
    if time != nil and time > limit, do: [{:not_handled, time}], else: []
  end

  defp unhandled(_no_consumer), do: []

  defp subscriptions(data) do
    data.subscriptions
    |> Map.values()
    |> Enum.reject(& &1.ending)
    |> Enum.sort_by(& &1.subscription.number)
  end

  @doc "Looks from now on, if there is a limit."
  @spec watch(State.t()) :: State.t()
  def watch(%{health: nil} = data),
    do: if(limited?(data), do: %{data | health: %{timer: timer(), kinds: []}}, else: data)

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
    problems = problems(state, data)
    kinds = Enum.map(problems, &kind/1)
    if kinds != health.kinds, do: Events.health(problems, data)
    end_silence(state, %{data | health: %{timer: timer(), kinds: kinds}})
  end

  defp timer, do: :erlang.start_timer(@interval, self(), :health)

  # The same problem is told once, however long it lasts.
  defp kind(problem) when is_atom(problem), do: problem
  defp kind({:not_handled, _time}), do: :not_handled
  defp kind(problem), do: {elem(problem, 0), elem(problem, 1)}

  # Messages that cannot come because nobody takes them are no silence.
  defp end_silence(:connected, %{connection: %{verdict: nil}} = data) do
    if Enum.any?(subscriptions(data), &reconnect?(&1, data)) and not behind?(data),
      do: Writing.hang_up(:silent, data),
      else: data
  end

  defp end_silence(_state, data), do: data

  # Another connection would help no sooner than after as long.
  defp reconnect?(%{subscription: %{on_silence: :reconnect} = limits} = entry, data) do
    connected = System.convert_time_unit(data.connection.since, :native, :millisecond)
    asked = max(entry[:asked] || connected, connected)
    silent = min(silent(Native.feed(limits.feed), entry), since(asked))
    not is_map_key(entry, :refused) and silent > limits.max_silence
  end

  defp reconnect?(_reported, _data), do: false

  defp behind?(%{handlers: handlers, connection: %{routes: routes}}),
    do: Handlers.busy?(handlers) or Native.paused(routes)
end
