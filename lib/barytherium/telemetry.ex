defmodule Barytherium.Telemetry do
  @moduledoc """
  The events that this library emits with [`:telemetry`](https://hex.pm/packages/telemetry).

  They are emitted if the application includes `:telemetry`. This library does not depend on it.
  `events/0` lists their names, for `:telemetry.attach_many/4`. Handlers run in the process that emits the event, as
  always with telemetry: one that takes long holds up that process, the connection's for example. Durations, and `:parse_time`, are in native time units.

  ## Connections

  Of `Barytherium.Network`:

    * `[:barytherium, :connect]` - an attempt to connect ended. Measurements: `:duration`.
      Metadata: `:host`, `:port`, `:result` (`:ok` or the reason) and `:network`, the
      pid of the `Barytherium.Network`.
    * `[:barytherium, :disconnect]` - a connection ended. Measurements: the counters of
      `t:Barytherium.Network.stats/0`. Metadata: `:host`, `:port`, `:tls`, `:reason` and `:network`.
    * `[:barytherium, :refused]` - the broker answered CONNECT with an ERROR. Measurements: none.
      Metadata: `:message` (the `message` header of the ERROR), `:listener` (the callback process)
      and `:network`.
    * `[:barytherium, :pause]` - reading has resumed after a pause, which began because the callback
      process was behind. Measurements: `:duration`. Metadata: `:listener` (the callback process)
      and `:network`.

  There are no events for single frames or reads. `Barytherium.Network.stats/1` counts those.

  ## Clients

  Of `Barytherium.Client`. The metadata of all but the last have `:client`, a pid, and `:endpoint`, the
  URL of the broker without credentials.

    * `[:barytherium, :client, :connected]` - there is a connection. Measurements: `:duration`, from the
      beginning of the attempt. Metadata: `:version`, `:server`, and the `:headers` of CONNECTED.
    * `[:barytherium, :client, :disconnected]` - a connection has ended. Measurements: `:duration`, how
      long it lasted. Metadata: `:error`, a `Barytherium.Error`, and `:failures`, the
      waits since a connection lasted.
    * `[:barytherium, :client, :connection_failure]` - an attempt to connect has failed. Measurements:
      `:duration`. Metadata: `:error` and `:failures` likewise.
    * `[:barytherium, :client, :error]` - the broker has sent an ERROR frame. Measurements: none.
      Metadata: `:frame`, and as `:disconnected`.
    * `[:barytherium, :client, :unexpected_message]` - a message came that belongs to no subscription.
      Measurements: none. Metadata: `:frame`.
    * `[:barytherium, :client, :not_published]` - a message that was to be kept (option `:spool`) is given up.
      Measurements: none. Metadata: as before, `:frame`, its SEND frame, and `:error`, a `Barytherium.Error`.
    * `[:barytherium, :client, :health]` - what `Barytherium.Client.health/1` says has changed, for a client that has
      limits. Measurements: none. Metadata: as before, and `:problems`, which is empty if all is well.
    * `[:barytherium, :client, :publish, :start]` - a message is about to be published, or several are, or a request;
      emitted in the calling process. Measurements: `:monotonic_time`, `:system_time`, `:count` and `:bytes`. Metadata:
      `:client` and `:messages`, as of the next event. See "Tracing" about headers.
    * `[:barytherium, :client, :publish]` - `Barytherium.Client.publish/4` or `publish_many/3` returns, or
      `publish_async/4` or `publish_many_async/3`, which return when the client has accepted the messages;
      emitted in the calling process. Measurements: `:duration`, `:count` (of messages), and `:bytes`
      (of their bodies). Metadata: `:client`, as it was given; `:messages`, a list with the headers of
      each message, `destination` included; `:result`, `:ok` or `{:error, error}`.
    * `[:barytherium, :client, :request]` - `Barytherium.Client.request/4` returns; emitted in the calling process.
      Measurements: `:duration`, and `:bytes` (of the request's body). Metadata: `:client`, as it was given; `:headers`,
      those of the request; `:result`, `:ok` or `{:error, error}`.

    * `[:barytherium, :client, :trace]` - frames were sent or received, for a client with `trace/2` to `:telemetry`.
      Measurements: `:count` (of frames). Metadata: `:client`, `:direction` (`:sent` or `:received`) and `:frames`, with
      their bodies.

  ## Tracing

  A publisher can name its trace in the headers of its messages:

      config :barytherium, publish_headers: {MyApp.Tracing, :headers, []}

  This function is called after the start event, in the same process, for each call that publishes, and returns a list of
  `{name, value}`: `[{"traceparent", "00-..."}]`. They are added to each message of the call that has no header of that
  name. If it fails, or returns something else, that is logged, and the messages are sent without. A consumer finds the
  headers in the events of its spans. `integrations/opentelemetry` does all of this.

  ## Consumers

  Spans of `Barytherium.Consumer`, emitted in its process. They are emitted only while a handler is attached
  to an event that begins with `[:barytherium, :consumer]`.

    * `[:barytherium, :consumer, :message, :start]` - `handle_message/2` is about to be called.
      Measurements: `:monotonic_time`, `:system_time`, `:count` (1), and `:bytes` (of the body).
      Metadata: `:module`, `:client`, `:consumer` (pids), and `:headers`, those of the message. The
      context of a trace is among them, if the publisher has put it there.
    * `[:barytherium, :consumer, :message, :stop]` - it has returned. Measurements: `:monotonic_time`
      and `:duration`. Metadata: as `:start`, and `:result`: what is done with the message, `:ack` for example.
    * `[:barytherium, :consumer, :message, :exception]` - it has raised. Measurements: as `:stop`.
      Metadata: as `:start`, and `:kind`, `:reason` and `:stacktrace`. These may contain the body.
    * `[:barytherium, :consumer, :exhausted]` - every attempt at a message has failed, and `on_exhausted` follows.
      Measurements: `:count` (1). Metadata: `:module`, `:client`, `:consumer`, and `:headers`.
    * `[:barytherium, :consumer, :batch, :start | :stop | :exception]` - the same for `handle_batch/2`.
      `:count` and `:bytes` are of all its messages. Instead of `:headers` there is `:messages`, a
      list with the headers of each.
  """

  @events [[:connect], [:disconnect], [:refused], [:pause]] ++
            [[:client, :publish, :start], [:client, :trace]] ++
            for(
              event <-
                ~w(connected disconnected connection_failure error unexpected_message publish request not_published health)a,
              do: [:client, event]
            ) ++
            [[:consumer, :exhausted]] ++
            for(
              what <- [:message, :batch],
              event <- [:start, :stop, :exception],
              do: [:consumer, what, event]
            )

  @doc "The names of all events."
  @spec events() :: [[atom(), ...], ...]
  def events, do: Enum.map(@events, &[:barytherium | &1])

  @doc false
  @spec connect(map(), integer(), :ok | atom()) :: :ok
  def connect(network, started, result) do
    execute([:connect], %{duration: System.monotonic_time() - started}, %{
      host: network.host,
      port: network.port,
      result: result,
      network: self()
    })
  end

  @doc false
  @spec disconnect(map(), atom(), Barytherium.Network.stats()) :: :ok
  def disconnect(network, reason, stats) do
    {%{tls: tls, parse_time: parse_time}, counters} =
      Map.split(stats, [:tls, :parse_time, :last_activity])

    parse_time = System.convert_time_unit(parse_time, :microsecond, :native)

    execute([:disconnect], Map.put(counters, :parse_time, parse_time), %{
      tls: tls,
      host: network.host,
      port: network.port,
      reason: reason,
      network: self()
    })
  end

  @doc false
  @spec refused(map(), binary()) :: :ok
  def refused(loop, message) do
    execute([:refused], %{}, %{
      message: message,
      listener: loop.listener_pid,
      network: loop.network_pid
    })
  end

  @doc false
  @spec pause(map(), integer()) :: :ok
  def pause(loop, started) do
    execute([:pause], %{duration: System.monotonic_time() - started}, %{
      listener: loop.listener_pid,
      network: loop.network_pid
    })
  end

  @doc false
  @spec client(atom(), map(), map()) :: :ok
  def client(event, measurements, metadata),
    do: execute([:client, event], measurements, metadata)

  @doc false
  @spec trace(pid(), :sent | :received, [Barytherium.Frame.t()]) :: :ok
  def trace(client, direction, frames) do
    metadata = %{client: client, direction: direction, frames: frames}
    execute([:client, :trace], %{count: length(frames)}, metadata)
  end

  @doc false
  @spec publish_start(GenServer.server(), [Barytherium.Frame.t()], integer()) :: :ok
  # There may be many messages, and nobody who wants to know.
  def publish_start(client, frames, started) do
    if frames != [] and telemetry?(), do: execute_start(client, frames, started), else: :ok
  end

  defp execute_start(client, frames, started) do
    times = %{monotonic_time: started, system_time: System.system_time()}
    metadata = %{client: client, messages: Enum.map(frames, & &1.headers)}
    execute([:client, :publish, :start], Map.merge(times, sizes(frames)), metadata)
  end

  defp sizes(frames),
    do: %{count: length(frames), bytes: frames |> Enum.map(&byte_size(&1.body)) |> Enum.sum()}

  @doc false
  @spec publish(GenServer.server(), [Barytherium.Frame.t()], integer(), term()) :: :ok
  def publish(client, frames, started, result) do
    measurements = Map.put(sizes(frames), :duration, System.monotonic_time() - started)
    messages = Enum.map(frames, & &1.headers)
    client(:publish, measurements, %{client: client, messages: messages, result: result})
  end

  @doc false
  @spec request(GenServer.server(), [Barytherium.Frame.t()], integer(), term()) :: :ok
  def request(client, [frame], started, result) do
    measurements = %{
      duration: System.monotonic_time() - started,
      bytes: byte_size(frame.body)
    }

    client(:request, measurements, %{client: client, headers: frame.headers, result: result})
  end

  @doc false
  # Whether somebody listens to the events of consumers. Asked for each list of frames.
  @spec observed?() :: boolean()
  def observed? do
    function_exported?(:telemetry, :list_handlers, 1) and
      apply(:telemetry, :list_handlers, [[:barytherium, :consumer]]) != []
  end

  @doc false
  @spec exhausted(map(), Barytherium.Frame.t()) :: :ok
  def exhausted(handler, message) do
    execute([:consumer, :exhausted], %{count: 1}, %{
      module: handler.module,
      client: handler.client,
      consumer: self(),
      headers: message.headers
    })
  end

  # As it is delivered.
  defp size({:compressed, body, _reason}), do: byte_size(body)
  defp size(body), do: byte_size(body)

  @doc false
  @spec span_start(:handle_message | :handle_batch, map(), [Barytherium.Frame.t()]) :: tuple()
  def span_start(callback, handler, messages) do
    common = %{module: handler.module, client: handler.client, consumer: self()}
    headers = Enum.map(messages, & &1.headers)

    {event, metadata} =
      case callback do
        :handle_message -> {:message, Map.put(common, :headers, hd(headers))}
        :handle_batch -> {:batch, Map.put(common, :messages, headers)}
      end

    started = System.monotonic_time()
    measurements = %{monotonic_time: started, system_time: System.system_time()}
    bytes = messages |> Enum.map(&size(&1.body)) |> Enum.sum()
    measurements = Map.merge(measurements, %{count: length(messages), bytes: bytes})
    execute([:consumer, event, :start], measurements, metadata)
    {event, started, metadata}
  end

  @doc false
  @spec span_stop(tuple(), tuple()) :: :ok
  def span_stop({event, started, metadata}, result) do
    now = System.monotonic_time()
    measurements = %{monotonic_time: now, duration: now - started}

    case result do
      {:exception, kind, reason, stacktrace} ->
        failure = %{kind: kind, reason: reason, stacktrace: stacktrace}
        execute([:consumer, event, :exception], measurements, Map.merge(metadata, failure))

      {command, _state} ->
        execute([:consumer, event, :stop], measurements, Map.put(metadata, :result, command))
    end
  end

  # Checked for each event, because the application may load `:telemetry` later. The check takes
  # less than a microsecond.
  defp telemetry?, do: function_exported?(:telemetry, :execute, 3)

  defp execute(event, measurements, metadata) do
    if telemetry?(),
      do: apply(:telemetry, :execute, [[:barytherium | event], measurements, metadata])

    :ok
  end
end
