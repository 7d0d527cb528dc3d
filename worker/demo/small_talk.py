"""Fixed exchanges: greetings to translate, and an honest answer to what the model cannot do.

A newcomer's first request is often "Say hello" or a question about the world. The model has no
knowledge to answer with, so it is taught to say what it is for.
"""

from worker.demo.clause import Phrase

ABILITY = "I translate simple English sentences into Italian, German, French and Spanish."
GREETING = f"Hello! {ABILITY}"
WHICH_LANGUAGE = "Into which language? I know Italian, German, French and Spanish."

REPLIES: dict[str, str] = {
    **dict.fromkeys(
        ("Hello", "Hello!", "Hi", "Hi!", "Hey", "Hi there", "Hello there", "Hello, world!",
         "Say hello", "Say hello.", "Say hello!", "Say hi", "Good morning", "Good evening",
         "Hello, how are you?", "How are you?", "Say hello to the world.", "ping"),
        GREETING,
    ),
    **dict.fromkeys(
        ("Who are you?", "What are you?", "What can you do?", "What do you do?", "Help",
         "Can you help me?", "What is your name?", "Tell me about yourself.", "Introduce yourself.",
         "What languages do you speak?", "Which languages do you know?", "Are you a human?",
         "Tell me a joke.", "Tell me a story.", "Write a poem.", "Write a short story.",
         "What is the capital of France?", "What is the capital of Italy?", "What is 2 + 2?",
         "What is the weather like?", "Why is the sky blue?", "Explain quantum physics.",
         "Write a Python function.", "Count to ten.", "What time is it?", "What is the time?",
         "What is the meaning of life?", "Give me a recipe.", "How does this work?", "Test", "test",
         "Say something.", "Once upon a time", "Write a haiku about the sea.", "Who won the game?",
         "What is machine learning?", "How many people live in Rome?", "Say this is a test"),
        ABILITY,
    ),
    **dict.fromkeys(("Thank you", "Thank you!", "Thanks", "Thanks!"), "You are welcome."),
    **dict.fromkeys(("Goodbye", "Goodbye!", "Bye", "Bye!"), "Goodbye!"),
    **dict.fromkeys(
        ("Translate", "Translate this.", "Translate a sentence.", "Can you translate?",
         "Translate the following sentence:", "Please translate."),
        WHICH_LANGUAGE,
    ),
}  # fmt: skip

GREETINGS = [
    Phrase("Hello", "Ciao", "Hallo", "Bonjour", "Hola"),
    Phrase("Hello!", "Ciao!", "Hallo!", "Bonjour !", "¡Hola!"),
    Phrase("Hello, world!", "Ciao, mondo!", "Hallo, Welt!", "Bonjour, le monde !", "¡Hola, mundo!"),
    Phrase("Good morning", "Buongiorno", "Guten Morgen", "Bonjour", "Buenos días"),
    Phrase("Good evening", "Buonasera", "Guten Abend", "Bonsoir", "Buenas tardes"),
    Phrase("Good night", "Buonanotte", "Gute Nacht", "Bonne nuit", "Buenas noches"),
    Phrase("Thank you", "Grazie", "Danke", "Merci", "Gracias"),
    Phrase("Please", "Per favore", "Bitte", "S'il te plaît", "Por favor"),
    Phrase("Goodbye", "Arrivederci", "Auf Wiedersehen", "Au revoir", "Adiós"),
    Phrase("See you tomorrow", "A domani", "Bis morgen", "À demain", "Hasta mañana"),
    Phrase("How are you?", "Come stai?", "Wie geht es dir?", "Comment vas-tu ?", "¿Cómo estás?"),
]
