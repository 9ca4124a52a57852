defmodule Barytherium.Consumer.Decisions do
  @moduledoc false
  # What callbacks have decided on messages, as frames that wait to be written: the field `acks` of a
  # `Barytherium.Consumer.Handler`, the latest first.

  require Logger

  alias Barytherium.Client.{Acknowledgements, Feed, Session}
  alias Barytherium.Consumer.Handler
  alias Barytherium.Frame
  alias Barytherium.Network.Sender

  @type decision :: :ack | :nack | :noreply | {:nack, Frame.frame_headers()}
  @type acks :: [Frame.t() | {:settle, Barytherium.Consumer.Partition.decision()}]

  @doc "Adds what was decided on these messages, for all or for each."
  @spec note_all(decision() | [decision()], [Frame.t()], Handler.t()) :: acks()
  def note_all(_command, [], handler), do: handler.acks

  def note_all(commands, messages, handler) when is_list(commands),
    do: Enum.zip_reduce(commands, messages, handler.acks, &note(&3, &1, &2, handler))

  # A NACK covers none but its own message, with ActiveMQ.
  def note_all(:ack, messages, %{mode: :client, session: %{shared?: false}} = handler),
    do: note(handler.acks, :ack, List.last(messages), handler)

  def note_all(command, messages, handler),
    do: Enum.reduce(messages, handler.acks, &note(&2, command, &1, handler))

  @doc "Adds what was decided on this message."
  @spec note(acks(), decision(), Frame.t(), Handler.t()) :: acks()
  def note(acks, :noreply, _message, _handler), do: acks

  def note(acks, {:nack, headers}, message, handler),
    do: note(acks, :nack, message, %{handler | nack_headers: headers})

  def note(acks, command, message, %{session: session} = handler) do
    extra = if command == :nack, do: handler.nack_headers, else: []

    case mode(handler, message) do
      :auto ->
        acks

      :client_individual ->
        add(acks, Acknowledgements.single(session, command, message, extra), handler)

      :client ->
        cover(acks, command, message, extra, handler)
    end
  end

  defp add(acks, nil, %{session: session}) do
    # Once for each connection.
    if Process.put(:unacknowledgeable, session.token) != session.token do
      Logger.error(
        "Barytherium cannot acknowledge: the broker leaves out the header that an acknowledgement names"
      )
    end

    acks
  end

  defp add(acks, frame, _handler), do: [frame | acks]

  # It has to wait for messages that others have.
  defp cover(acks, command, message, extra, %{session: %{shared?: true} = session} = handler) do
    case Acknowledgements.ids(session, message) do
      [] -> add(acks, nil, handler)
      [id] -> [{:settle, {id, command, extra}} | acks]
    end
  end

  defp cover(acks, command, message, extra, %{session: session} = handler) do
    if Session.rabbitmq?(session) do
      session
      |> Acknowledgements.now(:client, command, message, extra)
      |> Enum.reverse(acks)
    else
      frame = Acknowledgements.single(session, command, message, extra)
      acks |> drop_covered(frame, handler) |> add(frame, handler)
    end
  end

  # An acknowledgement covers the one before it that has not been written yet.
  defp drop_covered([%Frame{command: :ack} | acks], %Frame{command: :ack}, %{mode: :client}),
    do: acks

  defp drop_covered(acks, _frame, _handler), do: acks

  @doc "Gives these messages back. Each by itself: with `ack: :client` those before them may be acknowledged later."
  @spec refuse([Frame.t()], Handler.t()) :: acks()
  def refuse(failed, %{session: session, nack_headers: headers} = handler) do
    extra = requeue(headers)

    Enum.reduce(failed, handler.acks, fn message, acks ->
      if mode(handler, message) == :auto,
        do: acks,
        else: Acknowledgements.now(session, :client_individual, :nack, message, extra) ++ acks
    end)
  end

  # The broker's own default may be to discard it.
  defp requeue(headers),
    do:
      if(List.keymember?(headers, "requeue", 0),
        do: headers,
        else: [{"requeue", "true"} | headers]
      )

  @doc "How the subscription of this message is acknowledged."
  @spec mode(Handler.t(), Frame.t()) :: Session.mode()
  def mode(%{mode: nil, session: %Session{modes: modes} = session}, message),
    do: Map.get(modes, Session.subscription_id(session, message), :auto)

  def mode(%{mode: mode}, _message), do: mode

  @doc "Writes them."
  @spec flush(Handler.t()) :: Handler.t()
  def flush(%{acks: []} = handler), do: handler

  def flush(%{session: %Session{sender: sender}, acks: acks, partition: nil} = handler) do
    Sender.write(sender, Enum.reverse(acks))
    timed(%{handler | acks: []})
  end

  def flush(%{session: %Session{sender: sender}, acks: acks, partition: partition} = handler) do
    {decisions, frames} = acks |> Enum.reverse() |> Enum.split_with(&match?({:settle, _}, &1))
    if frames != [], do: Sender.write(sender, frames)

    if decisions != [],
      # See `Barytherium.Consumer.Partition.settle/2`.
      do: GenServer.cast(partition, {:settle, for({:settle, one} <- decisions, do: one)})

    # When those are written is known to nobody here.
    if frames == [], do: %{handler | acks: []}, else: timed(%{handler | acks: []})
  end

  defp timed(%{timed: []} = handler), do: handler

  defp timed(%{timed: timed, session: %Session{sender: sender}} = handler) do
    # After the end of a connection nothing is written.
    if Process.alive?(sender),
      do: for({to_ack, read_at} <- timed, do: Feed.delayed(to_ack, read_at))

    %{handler | timed: []}
  end
end
