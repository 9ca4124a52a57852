defmodule Barytherium.Client.Requeue do
  @moduledoc false
  # How a subscription ends on RabbitMQ, so that what was not acknowledged is delivered to others. The broker
  # keeps it for the connection otherwise. A NACK gives it back, but only while there is a subscription with
  # that id, and a NACK before the UNSUBSCRIBE makes room for more messages. So:
  #
  # 1. UNSUBSCRIBE, and in the same write a SUBSCRIBE with the same id, for one message at most. What was on
  #    its way still finds a subscription then.
  # 2. BEGIN. Its receipt comes after all of that.
  # 3. NACK for each message, in the transaction, then UNSUBSCRIBE, then COMMIT.
  #
  # If that one message has come in between, again. The functions run in the client, and take its data.

  alias Barytherium.Client.{Acknowledgements, Routing, Session, State, Transaction, Writing}
  alias Barytherium.Connection.Deadline
  alias Barytherium.{Frame, Native}
  alias Barytherium.Network.Sender

  # RabbitMQ 4 takes 1,024 frames in a transaction.
  @most_in_transaction 1_000

  # After so many times a queue that is written to all the time keeps a message until the connection ends.
  @most_rounds 5

  @enforce_keys [:subscription, :from, :deadline]
  defstruct [:subscription, :from, :deadline, :transaction, step: :resubscribed, round: 1]

  @typedoc "The request of a step. `from` gets the result of the last one."
  @type t :: %__MODULE__{
          subscription: Session.subscription(),
          from: term(),
          deadline: Deadline.t(),
          transaction: nil | String.t(),
          step: :resubscribed | :begun | :committed,
          round: pos_integer()
        }

  @doc "Whether a subscription has to end so."
  @spec needed?(Session.t(), Session.subscription()) :: boolean()
  def needed?(session, %{ack: ack, number: number}),
    do: Session.rabbitmq?(session) and ack != :auto and number not in session.forgotten

  @doc "Begins."
  @spec begin(Session.subscription(), term(), timeout(), State.t()) :: State.t()
  def begin(subscription, from, timeout, data) do
    # What still comes is noted here.
    Routing.delete(subscription, data)

    requeue = %__MODULE__{
      subscription: subscription,
      from: from,
      deadline: Deadline.in_ms(timeout)
    }

    {unsubscribe, session} = Session.unsubscribe(data.connection.session, subscription)

    write(
      [unsubscribe, resubscribe(session, subscription)],
      requeue,
      put_in(data.connection.session, session)
    )
  end

  # To whoever acknowledges a message the subscription has ended.
  defp resubscribe(session, subscription) do
    {frame, _session} = Session.subscribe(session, %{subscription | prefetch: 1})
    frame
  end

  defp write(frames, requeue, data),
    do: Writing.write_now(frames, requeue, Deadline.left(requeue.deadline), data)

  @doc "A message without a route. It may be one of a subscription that ends."
  @spec late(Frame.t(), State.t()) :: State.t()
  def late(%Frame{} = message, data) do
    number = data.connection.session && Session.number(data.connection.session, message)

    case data.subscriptions do
      %{^number => %{late: late}} ->
        put_in(
          data.subscriptions[number].late,
          Acknowledgements.ids(data.connection.session, message) ++ late
        )

      _other ->
        data
    end
  end

  @doc "The broker has confirmed a step. `:done`: it was the last one."
  @spec confirmed(t(), State.t()) :: {:more | :done, State.t()}
  def confirmed(%__MODULE__{step: :resubscribed} = requeue, data) do
    id = Transaction.new_id()
    requeue = %{requeue | step: :begun, transaction: id}
    {:more, write([Transaction.frame(id, :begin)], requeue, data)}
  end

  def confirmed(%__MODULE__{step: :begun, subscription: subscription} = requeue, data) do
    {ids, data} = take(subscription, data)

    [first | others] =
      Enum.chunk_every(ids, @most_in_transaction) ++ if(ids == [], do: [[]], else: [])

    others = for ids <- others, do: {Transaction.new_id(), ids}

    for {id, _ids} <- others,
        do: Sender.write(data.connection.sender, [Transaction.frame(id, :begin)])

    transactions = [{requeue.transaction, first} | others]

    nacks =
      for {id, ids} <- transactions, nack <- nacks(ids, id, data.connection.session), do: nack

    if nacks != [], do: Sender.write(data.connection.sender, nacks)
    {unsubscribe, session} = Session.unsubscribe(data.connection.session, subscription)
    commits = for {id, _ids} <- transactions, do: Transaction.frame(id, :commit)

    {:more,
     write(
       [unsubscribe | commits],
       %{requeue | step: :committed},
       put_in(data.connection.session, session)
     )}
  end

  def confirmed(%__MODULE__{step: :committed, subscription: subscription} = requeue, data) do
    if data.subscriptions[subscription.number].late == [] or requeue.round == @most_rounds do
      {:done, data}
    else
      again = %{requeue | step: :resubscribed, round: requeue.round + 1}
      {:more, write([resubscribe(data.connection.session, subscription)], again, data)}
    end
  end

  defp take(%{number: number} = subscription, data) do
    id = Session.id(data.connection.session, subscription)

    noted =
      for message <- Native.take_unacknowledged(data.connection.routes, id), do: {id, message}

    {noted ++ Enum.reverse(data.subscriptions[number].late),
     put_in(data.subscriptions[number].late, [])}
  end

  defp nacks(ids, transaction, session) do
    extra = [{"transaction", transaction}]
    for id <- ids, do: Acknowledgements.frame(session, :nack, id, extra)
  end
end
