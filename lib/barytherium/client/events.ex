defmodule Barytherium.Client.Events do
  @moduledoc false
  # What the log, telemetry, the process of a consumer and the listener are told about a client. The
  # functions run in the client, and take its data.

  require Logger

  alias Barytherium.Client.{Endpoint, Handlers, Options, Session, Spool, State}
  alias Barytherium.{Error, Frame, Telemetry, Text}

  @spec connected(Frame.t(), State.t()) :: :ok
  def connected(
        %Frame{headers: headers},
        %{connection: %{session: session}, endpoint: endpoint} = data
      ) do
    info = %{
      client: self(),
      endpoint: Endpoint.to_string(endpoint),
      version: session.version,
      server: session.server,
      headers: headers
    }

    Telemetry.client(
      :connected,
      %{duration: System.monotonic_time() - data.connection.started},
      info
    )

    notify({:connected, info}, data)
  end

  @spec disconnected(atom() | Frame.t(), integer(), State.t()) :: :ok
  def disconnected(reason, lasted, data) do
    Logger.warning("Barytherium lost #{Endpoint.to_string(data.endpoint)}: #{message(reason)}")
    Telemetry.client(:disconnected, %{duration: lasted}, metadata(reason, data))
    notify({:disconnected, Error.new(reason)}, data)
  end

  @doc "The connection was closed as `Barytherium.Client.close/2` asked."
  @spec closed(atom(), integer(), State.t()) :: :ok
  def closed(reason, lasted, data) do
    Telemetry.client(:disconnected, %{duration: lasted}, metadata(reason, data))
    to_listener({:disconnected, Error.new(reason)}, data)
  end

  @spec connection_failure(atom() | Frame.t(), State.t()) :: :ok
  def connection_failure(reason, data) do
    Logger.warning(
      "Barytherium has no connection to #{Endpoint.to_string(data.endpoint)}: #{message(reason)}"
    )

    duration = System.monotonic_time() - data.connection.started
    Telemetry.client(:connection_failure, %{duration: duration}, metadata(reason, data))
    notify({:connection_failure, Error.new(reason)}, data)
  end

  @doc "A server of STOMP 1.0 does not say which subscription a message is for."
  @spec by_destination(State.t()) :: :ok
  def by_destination(data) do
    Logger.info(
      "#{Endpoint.to_string(data.endpoint)} does not say which subscription a message is for, so " <>
        "its destination decides"
    )
  end

  @doc "A message came that belongs to no subscription: the answer in a temporary queue, for example."
  @spec unexpected(Frame.t(), State.t()) :: :ok
  def unexpected(frame, %{settings: %{listener: nil}} = data) do
    Logger.warning(
      "#{Endpoint.to_string(data.endpoint)} sent a message that belongs to no subscription, and there is " <>
        "no :listener to give it to"
    )

    Telemetry.client(:unexpected_message, %{}, Map.put(metadata(nil, data), :frame, frame))
  end

  def unexpected(frame, data) do
    to_listener({:message, frame}, data)
    Telemetry.client(:unexpected_message, %{}, Map.put(metadata(nil, data), :frame, frame))
  end

  @doc "An ERROR frame has arrived."
  @spec error(Frame.t(), State.t()) :: :ok
  def error(frame, data) do
    # That a connection was refused is logged by its network process.
    if State.session(data),
      do: Logger.error("#{Endpoint.to_string(data.endpoint)} #{message(frame)}")

    Telemetry.client(:error, %{}, Map.put(metadata(frame, data), :frame, frame))
    notify({:error, frame}, data)
  end

  @doc "A subscription could not be made on a new connection."
  @spec not_renewed(Session.subscription(), atom() | Frame.t(), State.t()) :: :ok
  def not_renewed(%{destination: destination}, reason, data) do
    Logger.error("Barytherium cannot subscribe to #{destination}: #{message(reason)}")

    to_listener(
      {:subscription_failed, %{destination: destination, error: Error.new(reason)}},
      data
    )
  end

  @doc "A message that was to be kept until the broker has it is given up: the broker refuses it, or it cannot be written."
  @spec not_published(Frame.t(), Error.t(), State.t()) :: :ok
  def not_published(frame, error, data) do
    destination = frame |> Frame.header("destination") |> Text.line()

    Logger.error("Barytherium gives up a message to #{destination}: #{Exception.message(error)}")

    event = %{frame: frame, error: error}
    Telemetry.client(:not_published, %{}, Map.merge(metadata(nil, data), event))
    to_listener({:not_published, event}, data)
  end

  # An exception may contain the password. Those of this library do not.
  @spec no_credentials(atom(), term()) :: :ok
  def no_credentials(:error, %ArgumentError{message: message} = error) do
    if message in Options.about_credentials() or
         String.starts_with?(message, "cannot write this connect"),
       do: Logger.error("Barytherium cannot log in: #{message}"),
       else: no_credentials(:error, error.__struct__)
  end

  def no_credentials(kind, reason) do
    what = Text.failure(kind, reason)
    Logger.error("Barytherium cannot log in: a function for the credentials failed (#{what})")
  end

  @spec no_headers(atom(), term(), String.t()) :: :ok
  def no_headers(kind, reason, destination) do
    Logger.error(
      "Barytherium: the function for the headers of #{Text.line(destination)} failed (#{Text.failure(kind, reason)}); " <>
        "those of the last connection are used"
    )
  end

  @doc "What is wrong has changed; nothing, if it is well again."
  @spec health([Barytherium.Client.problem()], State.t()) :: :ok
  def health(problems, data) do
    case problems do
      [] -> Logger.info("Barytherium: the feeds of #{Endpoint.to_string(data.endpoint)} are well")
      # There is a log of that already.
      [:not_connected] -> :ok
      _problems -> Logger.warning("Barytherium: " <> Enum.map_join(problems, "; ", &problem/1))
    end

    metadata = if data.endpoint, do: metadata(nil, data), else: %{client: self()}
    Telemetry.client(:health, %{}, Map.put(metadata, :problems, problems))
    to_listener({:health, problems}, data)
  end

  defp problem({:silent, destination, time}), do: "#{destination} is silent for #{time} ms"
  defp problem({:lagging, destination, time}), do: "#{destination} is #{time} ms behind"
  defp problem({:not_subscribed, destination}), do: "#{destination} is refused"
  defp problem({:not_handled, time}), do: "a handler has been in the same callback for #{time} ms"

  @spec status(atom(), State.t()) :: Barytherium.Client.status()
  def status(state, data) do
    session = State.session(data)

    %{
      state: state,
      endpoint: data.endpoint && Endpoint.to_string(data.endpoint),
      version: session && session.version,
      server: session && session.server,
      error: data.reason && Error.new(data.reason),
      failures: data.backoff.failures,
      connections: data.connections,
      subscriptions: Enum.count(data.subscriptions, fn {_number, entry} -> not entry.ending end),
      unconfirmed: map_size(data.requests.open),
      publishing: Spool.count(data.spool),
      network: State.network(data)
    }
  end

  defp metadata(reason, data) do
    %{
      client: self(),
      endpoint: Endpoint.to_string(data.endpoint),
      error: reason && Error.new(reason),
      failures: data.backoff.failures
    }
  end

  defp notify(event, data) do
    Handlers.tell(data.handlers, event)
    to_listener(event, data)
  end

  defp to_listener(_event, %{settings: %{listener: nil}}), do: :ok

  defp to_listener(event, %{settings: %{listener: listener}}) do
    send(listener, {:barytherium, :client, {event, self()}})
    :ok
  end

  @doc "A reason for exit signals: without a frame."
  @spec brief(atom() | Frame.t()) :: atom()
  def brief(reason) when is_atom(reason), do: reason
  def brief(%Frame{}), do: :refused

  defp message(reason), do: reason |> Error.new() |> Exception.message()
end
