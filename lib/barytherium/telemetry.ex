defmodule Barytherium.Telemetry do
  @moduledoc """
  Events for [`:telemetry`](https://hex.pm/packages/telemetry), if the application has it; this
  library does not depend on it, and without it emits nothing.

    * `[:barytherium, :connect]` - a connection was tried. Measurements: `:duration`, in native
      time units. Metadata: `:host`, `:port`, `:result` (`:ok` or the reason) and `:network`, the
      pid of the `Barytherium.Network`.
    * `[:barytherium, :disconnect]` - a connection ended. Measurements: the counters of
      `t:Barytherium.Network.stats/0` but `:last_activity`. Metadata: `:host`, `:port`, `:reason`
      and `:network`.
    * `[:barytherium, :refused]` - the broker answered CONNECT with an ERROR. Measurements: none.
      Metadata: `:message`, the ERROR's header of that name, `:listener` and `:network`.
    * `[:barytherium, :pause]` - reading goes on after it was stopped, because the callback
      process was behind. Measurements: `:duration`, in native time units. Metadata: `:listener`,
      the process that was behind, and `:network`.

  Nothing is emitted for a frame or a read: `Barytherium.Network.stats/1` has their counts.
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

  # Asked each time, because the application may load the library later; the answer costs less
  # than a microsecond.
  defp execute(event, measurements, metadata) do
    if function_exported?(:telemetry, :execute, 3),
      do: apply(:telemetry, :execute, [[:barytherium, event], measurements, metadata])

    :ok
  end
end
