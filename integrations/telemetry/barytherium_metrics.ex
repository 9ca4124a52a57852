defmodule BarytheriumMetrics do
  @moduledoc """
  What Barytherium reports, as descriptions for `telemetry_metrics` and its reporters: Prometheus, StatsD, LiveDashboard.

      {TelemetryMetricsPrometheus, metrics: BarytheriumMetrics.metrics()}

  The state of the feeds is no event of the library, because somebody has to ask for it. `telemetry_poller` can:

      {:telemetry_poller, measurements: [{BarytheriumMetrics, :poll, [[MyApp.Stomp], [MyApp.Trains]]}], period: 10_000}
  """
  import Telemetry.Metrics

  alias Barytherium.{Client, Consumer, Histogram}

  @milliseconds {:native, :millisecond}

  @delays [
    to_start: [to_start_p50: 0.5, to_start_p99: 0.99],
    to_ack: [to_ack_p50: 0.5, to_ack_p99: 0.99]
  ]

  @doc "All descriptions."
  def metrics, do: clients() ++ consumers() ++ feeds()

  defp clients do
    [
      counter("barytherium.client.connected.duration", tags: [:endpoint]),
      counter("barytherium.client.connection_failure.duration",
        tags: [:endpoint, :reason],
        tag_values: &with_reason/1
      ),
      counter("barytherium.client.disconnected.duration",
        tags: [:endpoint, :reason],
        tag_values: &with_reason/1
      ),
      summary("barytherium.client.publish.duration", unit: @milliseconds),
      sum("barytherium.client.publish.count"),
      sum("barytherium.client.publish.bytes"),
      summary("barytherium.pause.duration", unit: @milliseconds)
    ]
  end

  defp consumers do
    for what <- ["message", "batch"], metric <- spans("barytherium.consumer.#{what}"), do: metric
  end

  defp spans(event) do
    [
      summary(event <> ".stop.duration", tags: [:module, :result], unit: @milliseconds),
      counter(event <> ".exception.duration", tags: [:module, :kind])
    ]
  end

  defp feeds do
    delays = for {_delay, parts} <- @delays, {name, _part} <- parts, do: name

    for name <- [:messages, :bytes, :idle, :lag, :gaps, :missing, :repeats] ++ delays,
        do: last_value("barytherium.feed.#{name}", tags: [:client, :destination])
  end

  defp with_reason(%{error: %Barytherium.Error{reason: reason}} = metadata),
    do: Map.put(metadata, :reason, reason)

  @doc """
  Emits `[:barytherium, :feed]` for each subscription of `clients` and `consumers`, which are names or pids, with what
  `Barytherium.Client.feeds/1` returns of it: times in milliseconds; and of the delays the median and the 99th percentile
  since the process that calls this has done it before, in microseconds. Whoever is not there is left out.
  """
  def poll(clients, consumers \\ []) do
    of_consumers =
      for name <- consumers, client <- ask(&Consumer.clients/1, name), do: {name, client}

    for {name, client} <- Enum.map(clients, &{&1, &1}) ++ of_consumers,
        {feed, number} <- Enum.with_index(ask(&Client.feeds/1, client)) do
      {destination, counters} = Map.pop!(feed, :destination)
      {delays, counters} = Map.split(counters, [:to_start, :to_ack])
      measurements = Map.merge(counters, quantiles(delays, {client, number}))
      known = Map.reject(measurements, fn {_name, value} -> value == nil end)

      :telemetry.execute([:barytherium, :feed], known, %{client: name, destination: destination})
    end

    :ok
  end

  # Empty if nothing has come meanwhile, or nobody counts.
  defp quantiles(delays, feed) do
    for {delay, parts} <- @delays,
        histogram = delays[delay],
        recent =
          Histogram.since(histogram, Process.put({__MODULE__, feed, delay}, histogram) || []),
        recent != [],
        {name, part} <- parts,
        into: %{},
        do: {name, Histogram.quantile(recent, part)}
  end

  defp ask(question, name) do
    question.(name)
  catch
    :exit, _reason -> []
  end
end
