defmodule Barytherium.Telemetry do
  @moduledoc """
  The events that this library emits with [`:telemetry`](https://hex.pm/packages/telemetry).

  They are emitted if the application includes `:telemetry`. This library does not depend on it.

    * `[:barytherium, :connect]` - an attempt to connect ended. Measurements: `:duration`, in native
      time units. Metadata: `:host`, `:port`, `:result` (`:ok` or the reason) and `:network`, the
      pid of the `Barytherium.Network`.
    * `[:barytherium, :disconnect]` - a connection ended. Measurements: the counters of
      `t:Barytherium.Network.stats/0` except `:last_activity`. Metadata: `:host`, `:port`, `:reason`
      and `:network`.
    * `[:barytherium, :refused]` - the broker answered CONNECT with an ERROR. Measurements: none.
      Metadata: `:message` (the `message` header of the ERROR), `:listener` (the callback process)
      and `:network`.
    * `[:barytherium, :pause]` - reading has resumed after a pause, which began because the callback
      process was behind. Measurements: `:duration`, in native time units. Metadata: `:listener`
      (the callback process) and `:network`.

  There are no events for single frames or reads. `Barytherium.Network.stats/1` counts those.
  """

  @doc false
  @spec connect(map(), integer(), :ok | atom()) :: :ok
  def connect(network, started, result) do
    execute(:connect, %{duration: System.monotonic_time() - started}, %{
      host: network.host,
      port: network.port,
      result: result,
      network: self()
    })
  end

  @doc false
  @spec disconnect(map(), atom(), Barytherium.Network.stats()) :: :ok
  def disconnect(network, reason, stats) do
    execute(:disconnect, Map.delete(stats, :last_activity), %{
      host: network.host,
      port: network.port,
      reason: reason,
      network: self()
    })
  end

  @doc false
  @spec refused(map(), binary()) :: :ok
  def refused(loop, message) do
    execute(:refused, %{}, %{
      message: message,
      listener: loop.listener_pid,
      network: loop.network_pid
    })
  end

  @doc false
  @spec pause(map(), integer()) :: :ok
  def pause(loop, started) do
    execute(:pause, %{duration: System.monotonic_time() - started}, %{
      listener: loop.listener_pid,
      network: loop.network_pid
    })
  end

  # Checked for each event, because the application may load `:telemetry` later. The check takes
  # less than a microsecond.
  defp execute(event, measurements, metadata) do
    if function_exported?(:telemetry, :execute, 3),
      do: apply(:telemetry, :execute, [[:barytherium, event], measurements, metadata])

    :ok
  end
end
