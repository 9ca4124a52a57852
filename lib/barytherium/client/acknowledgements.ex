defmodule Barytherium.Client.Acknowledgements do
  @moduledoc false
  # ACK and NACK frames of a connection, and what RabbitMQ needs besides. There a cumulative acknowledgement
  # covers the messages of all subscriptions, and what was not acknowledged stays with the connection when its
  # subscription ends. So it is never asked for cumulative ones (`Session.subscribe/2`): the receive loop notes the
  # ids of what it has delivered (`noted/3`), and the messages before one are acknowledged one by one.

  alias Barytherium.Client.Session
  alias Barytherium.{Frame, Native}

  @typedoc "A message: the id of its subscription, and the id that an acknowledgement names."
  @type id :: {subscription :: binary(), id :: binary()}

  @doc """
  The header of a subscription's messages that is noted. `kept?`: what is not acknowledged when the
  subscription ends has to reach another subscriber. (That of a consumer ends with its connection.) `shared?`: several
  handlers get the messages, by a key; a cumulative acknowledgement has to wait for all of them.
  """
  @spec noted(Session.t(), Session.mode(), kept? :: boolean(), shared? :: boolean()) ::
          nil | :ack | :message_id
  def noted(%Session{version: version} = session, mode, kept?, shared?) do
    noted? =
      if Session.rabbitmq?(session),
        do: (mode == :client and not shared?) or (mode == :client_individual and kept?),
        else: mode == :client and shared?

    if noted?, do: if(version == "1.2", do: :ack, else: :message_id)
  end

  @doc """
  The frames that acknowledge `messages`, which may be of several subscriptions, and the messages that they
  name. `extra` are further headers; messages in `done` are left out.

  `:shared`: they are cumulative, and have to wait for other handlers. `:stale`: a message came from another connection, or its subscription has ended. `:auto`: its
  subscription does not ask for acknowledgements. `:unacknowledgeable`: the broker has left out the header
  that an acknowledgement names. `:unsupported`: STOMP 1.0 has no NACK, except on RabbitMQ.
  """
  @spec acknowledge(Session.t(), :ack | :nack, [Frame.t()], Frame.frame_headers(), [id()]) ::
          {:ok, [Frame.t()], [id()]}
          | {:shared, [{id(), :ack | :nack, Frame.frame_headers()}]}
          | {:error, :stale | :auto | :unacknowledgeable | :unsupported}
  def acknowledge(%Session{} = session, command, messages, extra, done) do
    modes = Enum.map(messages, &mode(session, &1))

    cond do
      command == :nack and not nack?(session) ->
        {:error, :unsupported}

      :stale in modes ->
        {:error, :stale}

      :auto in modes ->
        {:error, :auto}

      :unacknowledgeable in modes ->
        {:error, :unacknowledgeable}

      session.shared? and :client in modes ->
        {:shared, decisions(session, command, messages, extra)}

      true ->
        acknowledge_all(session, command, Enum.zip(modes, messages), extra, done)
    end
  end

  defp decisions(session, command, messages, extra),
    do: for(message <- messages, id <- ids(session, message), do: {id, command, extra})

  defp acknowledge_all(session, command, messages, extra, done) do
    done = MapSet.new(done)

    ids =
      for {mode, message} <- latest(session, messages),
          id <- covered(session, mode, message),
          id not in done,
          do: id

    {:ok, for(id <- ids, do: frame(session, command, id, extra)), ids}
  end

  defp mode(session, %Frame{command: :message} = message) do
    case Map.get(session.modes, Session.subscription_id(session, message), :stale) do
      mode when mode in [:auto, :stale] -> mode
      mode -> if id(session, message), do: mode, else: :unacknowledgeable
    end
  end

  defp mode(_session, _other), do: :stale

  # With `ack: :client` one for the last message of a subscription covers all of them.
  defp latest(session, messages) do
    {cumulative, single} = Enum.split_with(messages, &match?({:client, _message}, &1))

    last =
      cumulative
      |> Enum.reverse()
      |> Enum.uniq_by(fn {_mode, message} -> Session.subscription_id(session, message) end)
      |> Enum.reverse()

    last ++ single
  end

  defp covered(session, mode, message) do
    ids = ids(session, message)
    if mode == :client and Session.rabbitmq?(session), do: through(session, ids), else: ids
  end

  defp through(session, ids) do
    for {subscription, id} <- ids,
        id <- Native.unacknowledged_through(session.routes, subscription, id),
        do: {subscription, id}
  end

  @doc "The subscription has ended."
  @spec forget(Session.t(), String.t()) :: :ok
  def forget(session, subscription) do
    if Session.rabbitmq?(session), do: Native.take_unacknowledged(session.routes, subscription)
    :ok
  end

  @doc "These messages were acknowledged."
  @spec done(Session.t(), [id()]) :: :ok
  def done(%Session{} = session, ids) do
    if Session.rabbitmq?(session),
      do:
        for({subscription, id} <- ids, do: Native.acknowledged(session.routes, subscription, id))

    :ok
  end

  @doc "The frames that acknowledge a message, and with `ack: :client` those before it."
  @spec now(Session.t(), Session.mode(), :ack | :nack, Frame.t(), Frame.frame_headers()) :: [
          Frame.t()
        ]
  def now(session, mode, command, message, extra) do
    {:ok, frames, ids} = acknowledge_all(session, command, [{mode, message}], extra, [])
    done(session, ids)
    frames
  end

  @doc "What an acknowledgement of a message names, as a list of one, or of none if there is none."
  @spec ids(Session.t(), Frame.t()) :: [id()]
  def ids(session, message) do
    id = id(session, message)
    if id, do: [{Session.subscription_id(session, message), id}], else: []
  end

  @doc "The frame that acknowledges a message."
  @spec frame(Session.t(), :ack | :nack, id(), Frame.frame_headers()) :: Frame.t()
  def frame(%Session{version: version}, command, {subscription, id}, extra) do
    headers =
      case version do
        "1.0" -> [{"message-id", id}]
        "1.1" -> [{"message-id", id}, {"subscription", subscription}]
        _newer -> [{"id", id}]
      end

    %Frame{command: command, headers: headers ++ extra}
  end

  @doc """
  The frame that acknowledges one message, and does not note it. `nil` if there is none: the message lacks the
  header for it, or it is a NACK in STOMP 1.0.
  """
  @spec single(Session.t(), :ack | :nack, Frame.t(), Frame.frame_headers()) :: nil | Frame.t()
  def single(%Session{version: "1.2"}, command, message, extra) do
    # The usual case, and the fastest way.
    case List.keyfind(message.headers, "ack", 0) do
      {_name, id} -> %Frame{command: command, headers: [{"id", id} | extra]}
      nil -> nil
    end
  end

  def single(session, command, message, extra) do
    id = (command == :ack or nack?(session)) && id(session, message)
    if id, do: frame(session, command, {Session.subscription_id(session, message), id}, extra)
  end

  defp id(%Session{version: "1.2"}, message), do: Frame.header(message, "ack")
  defp id(_session, message), do: Frame.header(message, "message-id")

  defp nack?(session), do: session.version != "1.0" or Session.rabbitmq?(session)
end
