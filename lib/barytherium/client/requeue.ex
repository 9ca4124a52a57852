defmodule Barytherium.Client.Requeue do
  @moduledoc false
  # How a subscription ends on RabbitMQ, so that what was not acknowledged is delivered to others. The broker
  # keeps it for the connection otherwise. A NACK gives it back, but only while there is a subscription with
  # that id, and a NACK before the UNSUBSCRIBE makes room for more messages. So:
  #
  # 1. UNSUBSCRIBE, and in the same write a SUBSCRIBE with the same id, to a topic that nobody writes to. What
  #    was on its way still finds a subscription then, and nothing new comes.
  # 2. BEGIN. Its receipt comes after all that was on its way.
  # 3. ABORT, a NACK for each message, and UNSUBSCRIBE.
  #
  # The functions run in the client, and take its data.

  alias Barytherium.Client.{Acknowledgements, Routing, Session, State, Transaction, Transactions}
  alias Barytherium.Client.Writing
  alias Barytherium.{Frame, Native}
  alias Barytherium.Network.Sender

  # Milliseconds that the answer to a step may take. Then the connection ends, which gives everything back too.
  @step_timeout 10_000

  # Whatever the broker's default for a NACK is.
  @requeue [{"requeue", "true"}]

  @enforce_keys [:subscription, :transaction]
  defstruct [:subscription, :transaction, step: :resubscribed]

  @typedoc "The request of a step."
  @type t :: %__MODULE__{
          subscription: Session.subscription(),
          transaction: String.t(),
          step: :resubscribed | :begun | :ended
        }

  @doc "Whether a subscription has to end so."
  @spec needed?(State.t(), Session.subscription()) :: boolean()
  def needed?(%State{connection: %{session: session}}, %{ack: ack, number: number}),
    do: Session.rabbitmq?(session) and ack != :auto and number not in session.forgotten

  @doc "Begins."
  @spec begin(Session.subscription(), State.t()) :: State.t()
  def begin(subscription, data) do
    # What still comes is noted here.
    Routing.delete(subscription, data)
    id = Session.id(data.connection.session, subscription)
    data = Transactions.abort_for(id, data)
    {unsubscribe, session} = Session.unsubscribe(data.connection.session, subscription)
    requeue = %__MODULE__{subscription: subscription, transaction: Transaction.new_id()}
    again = again(id, subscription, data)
    write([unsubscribe, again], requeue, put_in(data.connection.session, session))
  end

  # Where a user may not subscribe to topics, for one message of the same destination. If one comes while that
  # ends, it stays until the connection ends.
  defp again(_id, subscription, %{topics?: false} = data) do
    {frame, _session} = Session.subscribe(data.connection.session, %{subscription | prefetch: 1})
    frame
  end

  defp again(id, _subscription, _data) do
    destination = {"destination", "/topic/barytherium.nothing.#{id}"}
    %Frame{command: :subscribe, headers: [{"id", id}, destination, {"ack", "client-individual"}]}
  end

  defp write(frames, requeue, data), do: Writing.write_now(frames, requeue, @step_timeout, data)

  @doc "A message of a subscription that ends, or has ended. The broker delivers it to another subscriber."
  @spec late(pos_integer(), Frame.t(), State.t()) :: State.t()
  def late(number, message, data) do
    case data.subscriptions do
      %{^number => %{late: late}} ->
        late = Acknowledgements.ids(data.connection.session, message) ++ late
        put_in(data.subscriptions[number].late, late)

      _ended ->
        data
    end
  end

  @doc "The broker has refused a step. The end of the connection gives everything back."
  @spec refused(t(), State.t()) :: State.t()
  def refused(%__MODULE__{step: :resubscribed}, data), do: %{data | topics?: false}
  def refused(_requeue, data), do: data

  @doc "The broker has confirmed a step. `:done`: it was the last one."
  @spec confirmed(t(), State.t()) :: {:more | :done, State.t()}
  def confirmed(%__MODULE__{step: :resubscribed, transaction: transaction} = requeue, data),
    do: {:more, write([Transaction.frame(transaction, :begin)], %{requeue | step: :begun}, data)}

  def confirmed(%__MODULE__{step: :begun, subscription: subscription} = requeue, data) do
    session = data.connection.session

    nacks =
      for id <- take(subscription, data), do: Acknowledgements.frame(session, :nack, id, @requeue)

    if nacks != [], do: Sender.write(session.sender, nacks)
    {unsubscribe, _session} = Session.unsubscribe(session, subscription)
    frames = [Transaction.frame(requeue.transaction, :abort), unsubscribe]
    {:more, write(frames, %{requeue | step: :ended}, data)}
  end

  def confirmed(%__MODULE__{step: :ended}, data), do: {:done, data}

  # Those that are being acknowledged by a COMMIT are gone.
  defp take(%{number: number} = subscription, %{connection: connection} = data) do
    id = Session.id(connection.session, subscription)
    noted = for message <- Native.take_unacknowledged(connection.routes, id), do: {id, message}

    late =
      case data.subscriptions do
        %{^number => %{late: late}} -> Enum.reverse(late)
        _forgotten -> []
      end

    acknowledged = Transactions.acknowledged(data)
    Enum.reject(noted ++ late, &(&1 in acknowledged))
  end
end
