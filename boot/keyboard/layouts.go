package keyboard

// us is what each key types on a US keyboard: the row of digits, the three rows of
// letters, and the key beside the left shift that ISO keyboards have.
const us = "`1234567890-=" + "qwertyuiop[]\\" + "asdfghjkl;'" + "zxcvbnm,./" + "<"

// layouts are those of xkeyboard-config 2.35 that have the letters of a recovery key on
// other keys than a US keyboard has, or none of them. Each has for each key of us the
// character that it types without shift; a space is a key that types none.
var layouts = []Layout{
	{"Dvorak", "us(dvorak)", "`1234567890[]',.pyfgcrl/=\\aoeuidhtns-;qjkxbmwvz<"},
	{"Programmer Dvorak", "us(dvp)", "$&[{}(=*)+]!#;,.pyfgcrl/@\\aoeuidhtns-'qjkxbmwvz<"},
	{"left-handed Dvorak", "us(dvorak-l)", "`[]/pfmlj4321;qbyurso.65=\\-kcdtheaz87'xgvwni,09<"},
	{"right-handed Dvorak", "us(dvorak-r)", "`1234jlmfp/[]56q.orsuyb;=\\78zaehtdck-90x,inwvg'<"},
	{"Colemak", "us(colemak)", "`1234567890-=qwfpgjluy;[]\\arstdhneio'zxcvbkm,./-"},
	{"Colemak-DH", "us(colemak_dh)", "`1234567890-=qwfpbjluy;[]\\arstgmneio'xcdvzkh,./z"},
	{"Workman", "us(workman)", "`1234567890-=qdrwbjfup;[]\\ashtgyneoi'zxmcvkl,./<"},
	{"Bépo", "fr(bepo)", "$\"«»()@+-/*=%bépoè vdljzwçauie,ctsrnmàyx.k'qghfê"},
	{"Neo", "de(neo)", " 1234567890- xvlcwkhgfqß  uiaeosnrtdyüöäpzbm,.j "},
	{"Turkish Q", "tr", "\"1234567890*-qwertyuıopğü,asdfghjklşizxcvbnmöç.<"},
	{"Turkish F", "tr(f)", "+1234567890/-fgğıodrnhpqwxuieaütkmlyşjövcçzsb.,<"},
	{"Greek", "gr", "`1234567890-=;ςερτυθιοπ[]\\ασδφγηξκλ 'ζχψωβνμ,./«"},
	{"Hebrew", "il", ";1234567890-=/'קראטוןםפ][\\שדגכעיחלךף,זסבהנמצתץ.<"},
	{"Russian", "ru", "ё1234567890-=йцукенгшщзхъ\\фывапролджэячсмитьбю./"},
	{"Russian phonetic", "ru(phonetic)", "ю1234567890-чявертыуиопшщэасдфгхйкл;'зьцжбнм,./|"},
	{"Ukrainian", "ua", "'1234567890-=йцукенгшщзхїґфівапролджєячсмитьбю./"},
	{"Belarusian", "by", "ё1234567890-=йцукенгшўзх'\\фывапролджэячсмітьбю./"},
	{"Kazakh", "kz", "(\"әіңғ,.үұқөһйцукенгшщзхъ\\фывапролджэячсмитьбю№<"},
	{"Bulgarian", "bg", "(1234567890-.,уеишщксдзц;„ьяаожгтнвмчюйъэфхпрлбѝ"},
	{"Bulgarian phonetic", "bg(phonetic)", "ч1234567890-=явертъуиопшщюасдфгхйкл;'зьцжбнм,./ѝ"},
	{"Serbian", "rs", "`1234567890'+љњертзуиопшђжасдфгхјклчћжџцвбнм,.-<"},
	{"Macedonian", "mk", " 1234567890-=љњертѕуиопшѓжасдфгхјклчќзџцвбнм,./<"},
	{"Armenian", "am", "՝ֆձ֊,։՞․՛)օէղճփբսմուկըթծց»ջվգեանիտհպրժդչյզլքխշռ?"},
	{"Georgian", "ge", "„1234567890-=ქწერტყუიოპ[]\\ასდფგჰჯკლ;'ზხცვბნმ,./«"},
	{"Arabic", "ara", "ذ1234567890-=ضصثقفغعهخحجد\\شسيبلاتنمكطئءؤرﻻىةوزظ|"},
	{"Persian", "ir", " ۱۲۳۴۵۶۷۸۹۰-=ضصثقفغعهخحجچ\\شسیبلاتنمکگظطزرذدپو./<"},
	{"Thai", "th", "_ๅ/-ภถุึคตจขชๆไำพะัีรนยบลฃฟหกดเ้่าสวงผปแอิืทมใฝ<"},
}
